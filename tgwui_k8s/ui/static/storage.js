// What the browser keeps for this page. Nothing of it is anywhere else.

const prefix = `tgwui:${window.tgwuiPage.root}:`;

/** The value kept under a name; `fallback` where there is none, or none that can be read. */
export function load(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(prefix + name)) ?? fallback;
  } catch {
    return fallback;
  }
}

/** Keep a value; false where the browser has no room for it. */
export function save(name, value) {
  try {
    localStorage.setItem(prefix + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** Forget a value. */
export function forget(name) {
  localStorage.removeItem(prefix + name);
}

/** All names that begin like this. */
export function names(start) {
  return Object.keys(localStorage)
    .filter((key) => key.startsWith(prefix + start))
    .map((key) => key.slice(prefix.length));
}

/** Call `act` with the name of each value that another tab of this browser keeps or forgets. */
export function onChange(act) {
  window.addEventListener("storage", ({ key }) => key?.startsWith(prefix) && act(key.slice(prefix.length)));
}
