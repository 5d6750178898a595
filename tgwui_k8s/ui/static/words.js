// The page's words in the browser's language; the texts are words/*.yaml.

export const language = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";

const words = window.tgwuiPage.words[language];

/** The text for a key, with `{name}` replaced by `values.name`. Unknown keys show themselves. */
export function say(key, values = {}) {
  return (words[key] ?? key).replace(/\{(\w+)\}/g, (match, name) => values[name] ?? match);
}

/** Whether there is a text for this key. */
export function canSay(key) {
  return key in words;
}
