// As much of CBOR (RFC 8949) as images use: integers, bytes, text, arrays, maps,
// false, true and null, of definite length.

export function decode(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  const argument = (info) => {
    if (info < 24) return BigInt(info);
    const size = { 24: 1, 25: 2, 26: 4, 27: 8 }[info];
    if (!size) throw new Error(`CBOR: additional information ${info}`);
    let n = 0n;
    for (let i = 0; i < size; i++) n = (n << 8n) | BigInt(view.getUint8(at++));
    return n;
  };
  const slice = (n) => {
    if (n > BigInt(bytes.length - at)) throw new Error("CBOR: cut off");
    at += Number(n);
    return bytes.subarray(at - Number(n), at);
  };
  const item = () => {
    const head = view.getUint8(at++);
    const n = argument(head & 31);
    switch (head >> 5) {
      case 0: return n;
      case 1: return -1n - n;
      case 2: return slice(n);
      case 3: return new TextDecoder().decode(slice(n));
      case 4: return Array.from({ length: Number(n) }, item);
      case 5: return new Map(Array.from({ length: Number(n) }, () => [Number(item()), item()]));
      case 7: if (n >= 20n && n <= 22n) return [false, true, null][Number(n) - 20];
    }
    throw new Error(`CBOR: initial byte ${head}`);
  };
  const value = item();
  if (at !== bytes.length) throw new Error("CBOR: bytes behind the item");
  return value;
}

export function encode(value) {
  const out = [];
  const head = (major, n) => {
    n = BigInt(n);
    if (n < 24n) return out.push(Uint8Array.of((major << 5) | Number(n)));
    const info = n < 1n << 8n ? 0 : n < 1n << 16n ? 1 : n < 1n << 32n ? 2 : 3;
    const b = new Uint8Array(1 + (1 << info));
    b[0] = (major << 5) | (24 + info);
    for (let i = b.length - 1; i > 0; i--, n >>= 8n) b[i] = Number(n & 255n);
    out.push(b);
  };
  const item = (v) => {
    if (v === null || typeof v === "boolean") return head(7, v === null ? 22 : v ? 21 : 20);
    if (typeof v === "number" || typeof v === "bigint") return v < 0 ? head(1, -1n - BigInt(v)) : head(0, v);
    if (typeof v === "string") {
      const b = new TextEncoder().encode(v);
      head(3, b.length);
      return out.push(b);
    }
    if (v instanceof Uint8Array) {
      head(2, v.length);
      return out.push(v);
    }
    if (Array.isArray(v)) {
      head(4, v.length);
      return v.forEach(item);
    }
    head(5, v.size);
    for (const [key, field] of [...v].sort((a, b) => a[0] - b[0])) {
      item(key);
      item(field);
    }
  };
  item(value);
  return Buffer.concat(out);
}
