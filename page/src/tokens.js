// Tokens as people read them.

/** The bytes that GPT-2's byte-level vocabulary writes as printable characters: character → byte. */
function byteTable() {
  const printable = [];
  for (const [from, to] of [
    [33, 126],
    [161, 172],
    [174, 255],
  ])
    for (let byte = from; byte <= to; byte++) printable.push(byte);
  const table = new Map(printable.map((byte) => [String.fromCodePoint(byte), byte]));
  let extra = 256;
  for (let byte = 0; byte < 256; byte++) if (!printable.includes(byte)) table.set(String.fromCodePoint(extra++), byte);
  return table;
}

const BYTES = byteTable();

/** The text of each token; one that holds only a part of a character is written as its bytes, ‹f0 9f›. */
export function tokenTexts(tokenizer, ids) {
  return ids.map((id) => {
    const token = tokenizer.id_to_token(id) ?? "";
    const values = [...token].map((character) => BYTES.get(character));
    if (values.includes(undefined)) return token; // a special token
    const bytes = Uint8Array.from(values);
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch {
      return `‹${values.map((byte) => byte.toString(16).padStart(2, "0")).join(" ")}›`;
    }
  });
}

/** A token as a word in a picture: without the space in front, or with a mark where it goes on a word, unless it is the first. */
export function shown(text, first = false) {
  if (text.startsWith(" ") && text.trim()) return text.trim();
  if (!text.trim()) return text === "\n" ? "⏎" : "␣";
  return !first && /^[\p{L}\p{N}]/u.test(text) ? `…${text}` : text;
}
