// Reads arrays of a store with zarrita.js: prints a line of JSON an array, with a hash of its values' bytes.
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import path from "node:path";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [store, ...names] = process.argv.slice(2);
const zarr = await import(pathToFileURL(createRequire(path.join(process.cwd(), "x.js")).resolve("zarrita")));

class Folder {
  constructor(root) { this.root = root; }
  async get(key) {
    try { return new Uint8Array(await readFile(path.join(this.root, key))); } catch { return undefined; }
  }
  async getRange(key, range) {
    const bytes = await this.get(key);
    if (bytes === undefined) return undefined;
    if (range.suffixLength !== undefined) return bytes.slice(bytes.length - range.suffixLength);
    return bytes.slice(range.offset, range.offset + range.length);
  }
}

const root = zarr.root(new Folder(store));
for (const name of names) {
  try {
    const array = await zarr.open.v3(root.resolve(name), { kind: "array" });
    const { data, shape } = await zarr.get(array);
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    console.log(JSON.stringify({ name, shape, dtype: array.dtype, sha256: createHash("sha256").update(bytes).digest("hex") }));
  } catch (error) {
    console.log(JSON.stringify({ name, error: String(error.message ?? error) }));
  }
}
