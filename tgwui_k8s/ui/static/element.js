// Elements without HTML strings: whatever a model or a server said stays text.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "g", "line", "path", "polyline", "text", "title"]);

/** An element; attributes that are functions become event listeners, null ones are left out. */
export function element(tag, attributes = {}, ...children) {
  const made = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...there(children));
  return made;
}

/** Put new children into the element with this id, where it is on the page. */
export function fill(id, ...children) {
  document.getElementById(id)?.replaceChildren(...there(children));
}

function there(children) {
  return children.flat().filter((child) => child !== null && child !== undefined);
}

/** Have the browser save a file. */
export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** Let a person choose a file; its text. */
export function chooseFile(accept) {
  return new Promise((resolve) => {
    const input = element("input", { type: "file", accept, id: "tgwui-file", hidden: "" });
    input.addEventListener("change", async () => {
      input.remove();
      resolve(await input.files[0]?.text());
    });
    input.addEventListener("cancel", () => (input.remove(), resolve(undefined)));
    document.body.append(input);
    input.click();
  });
}
