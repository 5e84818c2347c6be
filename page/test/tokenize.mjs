// Texts from stdin (a JSON list) to token ids on stdout, with the page's tokenizer: the Python tests compare them.

import { readFileSync } from "node:fs";
import { Tokenizer } from "@huggingface/tokenizers";

const pocket = new URL("../../helpers/pocket/", import.meta.url);
const json = JSON.parse(readFileSync(new URL("tokenizer.json", pocket), "utf8"));
const config = JSON.parse(readFileSync(new URL("tokenizer_config.json", pocket), "utf8"));
const tokenizer = new Tokenizer(json, config);
const texts = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(texts.map((text) => tokenizer.encode(text).ids)));
