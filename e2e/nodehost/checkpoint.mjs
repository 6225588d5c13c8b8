// Checkpoints as `meshnode worker export` writes them: see node/image.cddl.

import { createHash } from "node:crypto";
import { decode, encode } from "./cbor.mjs";

const magic = Buffer.from("MNCK\x01");
const imageMagic = Buffer.from("MNIM\x01");
export const pageSize = 4096;

// read returns the image, the module's bytes, and memory as [first page, bytes].
export function read(file) {
  if (!file.subarray(0, 5).equals(magic)) throw new Error("not a checkpoint");
  let at = 5, image, end = false;
  const module = [], memory = [];
  while (!end) {
    const length = file.readUInt32BE(at);
    const record = decode(file.subarray(at + 4, at + 4 + length));
    if (record.has(1)) {
      if (!record.get(1).subarray(0, 5).equals(imageMagic)) throw new Error("not an image");
      image = decode(record.get(1).subarray(5));
    } else if (record.has(2)) {
      module.push(record.get(2));
    } else if (record.has(4)) {
      memory.push([Number(record.get(3) ?? 0), record.get(4)]);
    } else if (record.has(6)) {
      if (!createHash("sha256").update(file.subarray(0, at)).digest().equals(record.get(6))) throw new Error("damaged");
      end = true;
    } else {
      throw new Error("this host knows no files");
    }
    at += 4 + length;
  }
  return { image, module: Buffer.concat(module), memory };
}

export function write(image, module, memory) {
  const parts = [magic];
  const put = (key, value, page) => {
    const record = new Map([[key, value]]);
    if (page) record.set(3, page);
    const body = encode(record);
    const length = Buffer.alloc(4);
    length.writeUInt32BE(body.length);
    parts.push(length, body);
  };
  put(1, Buffer.concat([imageMagic, encode(image)]));
  for (let i = 0; i < module.length; i += 1 << 18) put(2, module.subarray(i, i + (1 << 18)));
  const zero = Buffer.alloc(pageSize);
  for (let page = 0; page * pageSize < memory.length; page++) {
    const bytes = Buffer.from(memory.buffer, memory.byteOffset + page * pageSize, pageSize);
    if (!bytes.equals(zero)) put(4, bytes, page);
  }
  put(6, createHash("sha256").update(Buffer.concat(parts)).digest());
  return Buffer.concat(parts);
}
