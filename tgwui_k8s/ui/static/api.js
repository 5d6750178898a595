// The API of whichever pod answers, through the page's own origin. Each call is one request, and a
// stream is the answer to it: no pod has to remember anything between two requests.

const root = window.tgwuiPage.root;

export let pod = "";

/** What went wrong, with the API's machine-readable code where it gave one. */
export class ApiError extends Error {
  constructor(code, message = "", param = null) {
    super(message);
    this.code = code;
    this.param = param;
  }
}

/** The JSON that GET answers. */
export async function get(path) {
  return (await request(path)).json();
}

/** The text that GET answers. */
export async function getText(path) {
  return (await request(path)).text();
}

/** The JSON that POST answers; undefined for an empty answer. */
export async function post(path, body, signal) {
  const text = await (await request(path, body ?? {}, signal)).text();
  return text ? JSON.parse(text) : undefined;
}

/** The events of a stream as `{event, data}`, parsed. Throws `ApiError` for one that breaks off. */
export async function* stream(path, body, signal) {
  const answer = await request(path, body, signal);
  let isWhole = false;
  for await (const { event, data } of frames(answer.body)) {
    isWhole = data === "[DONE]" || event === "done";
    if (isWhole) continue;
    const parsed = JSON.parse(data);
    if (event === "error" || parsed.error) throw errorOf(parsed.error ?? parsed);
    yield { event, data: parsed };
  }
  if (!isWhole) throw new ApiError("interrupted");
}

async function* frames(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new ApiError("interrupted");
      });
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n");
        const field = (name) => lines.filter((line) => line.startsWith(`${name}: `))
          .map((line) => line.slice(name.length + 2)).join("\n");
        if (field("data")) yield { event: field("event") || "message", data: field("data") };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function request(path, body, signal) {
  const options = { signal, headers: { "x-tgwui-page": "1" } };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(root + path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError("network");
  }
  pod = answer.headers.get("x-tgwui-pod") ?? pod;
  if (answer.ok) return answer;
  throw errorOf((await answer.json().catch(() => ({}))).error ?? { message: String(answer.status) });
}

function errorOf(error) {
  // A key that the API no longer takes is a session that is over.
  const code = error.code === "invalid_api_key" ? "session_ended" : error.code;
  return new ApiError(code, error.message ?? "", error.param ?? null);
}
