// Reads arrays of a store with zarrita.js: prints a line of JSON an array, with a hash of its values' bytes.
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [store, ...names] = process.argv.slice(2);
// The package is for `import` alone, which looks beside this file: its entry is looked up where it is installed.
const folder = path.join(process.cwd(), "node_modules", "zarrita");
const about = JSON.parse(await readFile(path.join(folder, "package.json"), "utf8"));
const zarr = await import(pathToFileURL(path.join(folder, about.exports?.["."]?.import ?? about.main)));

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
