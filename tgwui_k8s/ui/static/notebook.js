// One big text that the model goes on with, from the cursor.

import { post, stream } from "./api.js";
import * as notice from "./notice.js";
import { load, save } from "./storage.js";
import { showTokens, tokensOf } from "./tokens.js";

const ROUTE = "/page/api/v1/completions";
const NUM_ALTERNATIVES = 5;
const PAINT_MS = 80;

export class Notebook {
  constructor(parameters, paint) {
    this.parameters = parameters;
    this.paint = () => paint("paint_notebook");
    this.text = load("notebook", "This is a cake recipe:\n\n1.");
    this.before = [];
    this.hasTokens = true;
    this.running = null;
  }

  get area() {
    return document.querySelector("#tgwui-notebook textarea");
  }

  typed(text) {
    this.text = text;
    save("notebook", text);
  }

  showTokens(isOn) {
    this.hasTokens = isOn;
    if (!isOn) showTokens([]);
  }

  stop() {
    this.running?.abort();
  }

  undo() {
    if (this.running || !this.before.length) return;
    this.typed(this.before.pop());
    this.paint();
  }

  /** Generate at the cursor; what stands after it stays after it. */
  async generate(text) {
    if (this.running) return;
    const cursor = this.area?.selectionEnd || text.length;
    const [head, tail] = [text.slice(0, cursor), text.slice(cursor)];
    this.before.push(text);
    let written = "";
    const tokens = [];
    await this.run(async (signal) => {
      const limit = this.parameters.values.max_tokens ? {} : { auto_max_new_tokens: true };
      const logprobs = this.hasTokens ? { logprobs: NUM_ALTERNATIVES } : {};
      const body = { prompt: head, ...limit, ...logprobs, ...this.parameters.body(), stream: true };
      for await (const { data } of stream(ROUTE, body, signal)) {
        const [choice] = data.choices;
        if (!choice) continue;
        written += choice.text;
        tokens.push(...tokensOf(choice.logprobs));
        this.text = head + written + tail;
        this.paintSoon(tokens);
      }
    });
    this.text = head + written + tail;
    save("notebook", this.text);
    clearTimeout(this.timer);
    this.timer = undefined;
    this.paint();
    showTokens(tokens);
    setTimeout(() => this.putCursor(head.length + written.length), PAINT_MS);
  }

  /** Colour the text as it is: how likely was each of its tokens? */
  async colour(text) {
    if (this.running || !text) return;
    await this.run(async (signal) => {
      const body = { prompt: text, echo: true, max_tokens: 0, logprobs: NUM_ALTERNATIVES };
      const answer = await post(ROUTE, body, signal);
      showTokens(tokensOf(answer.choices[0].logprobs));
    });
  }

  async run(work) {
    const stop = (this.running = new AbortController());
    document.body.dataset.notebook = "running";
    notice.clear();
    try {
      await work(stop.signal);
    } catch (error) {
      if (!stop.signal.aborted) notice.show(error);
    }
    this.running = null;
    document.body.dataset.notebook = "";
  }

  paintSoon(tokens) {
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      this.paint();
      if (this.hasTokens) showTokens(tokens);
    }, PAINT_MS);
  }

  putCursor(place) {
    this.area?.focus();
    this.area?.setSelectionRange(place, place);
  }

  painted() {
    return [this.text];
  }
}
