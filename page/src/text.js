// What the page says. Sentences live in strings/<language>.json; here they get their numbers.

let strings = {};
let language = "en";

export function speak(given, name) {
  strings = given;
  language = name;
}

/** The sentence `key` with {names} filled in. Throws for a sentence or a value that is missing. */
export function t(key, values = {}) {
  if (!(key in strings)) throw new Error(`there is no sentence "${key}"`);
  return strings[key].replace(/\{(\w+)\}/g, (_, name) => {
    if (!(name in values)) throw new Error(`"${key}" needs a value for {${name}}`);
    return values[name];
  });
}

/** "a **b** c" as nodes, the part between stars in bold. */
export function rich(text) {
  return text.split("**").map((part, index) => {
    if (index % 2 === 0) return document.createTextNode(part);
    const bold = document.createElement("strong");
    bold.textContent = part;
    return bold;
  });
}

export function plain(text) {
  return text.replaceAll("**", "");
}

export function number(value, digits = 0) {
  return new Intl.NumberFormat(language, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(
    value,
  );
}

/** A length with three digits that count: 0.52, 7.31, 55.4, 121. */
export function measure(value) {
  if (value === 0) return number(0);
  const digits = Math.min(3, Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value)))));
  return number(value, digits);
}

/** A probability in percent: 77%, 5.3%, 0.4%, below 0.1%. */
export function percent(p, below = "number.below") {
  const format = (value, digits) =>
    new Intl.NumberFormat(language, {
      style: "percent",
      minimumFractionDigits: digits,
      maximumFractionDigits: digits,
    }).format(value);
  if (p < 0.001) return t(below, { number: format(0.001, 1) });
  return format(p, p < 0.0995 || (p > 0.985 && p < 1) ? 1 : 0);
}

/** The same where room is short: <0.1%. */
export function short(p) {
  return percent(p, "number.less");
}

export function list(items) {
  return new Intl.ListFormat(language).format(items.map(String));
}
