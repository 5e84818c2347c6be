// Where the page's large parts lie: in the page as base64, or beside it as files.

/** How many packed bytes a part has. */
export const bytes = (name) => +document.getElementById(`data-${name}`).dataset.bytes;

/** A part as { base64 } or { url }; base64 is taken out of the page, where it would be held twice. */
export function source(name) {
  const element = document.getElementById(`data-${name}`);
  const { url } = element.dataset;
  if (url) return { url: new URL(url, location.href).href };
  const base64 = element.textContent;
  element.textContent = "";
  return { base64 };
}
