// A host for command workers under V8. It continues a worker from a checkpoint
// that meshnode has written, until it ends, waits for input, or has come to a
// number of suspend points (0: at once), and then writes one that meshnode can read.
//
//	node host.mjs MODULE DESCRIPTION CHECKPOINT [-polls N] [-input LINE]... [-out FILE]
//
// MODULE is the rewritten module, with polls that count down, and DESCRIPTION
// what package suspend says of it. Standard output is what the program has
// written to its own and nobody has taken yet; the last line of standard error
// says how it stopped, and the SHA-256 of its memory.

import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { read, write, pageSize } from "./checkpoint.mjs";
import { decode, encode } from "./cbor.mjs";
import { Stack } from "./stack.mjs";

const [modulePath, programPath, checkpointPath, ...options] = process.argv.slice(2);
const input = [];
let polls = 0x7fffffff, outPath;
for (let i = 0; i < options.length; i += 2) {
  if (options[i] === "-polls") polls = Number(options[i + 1]);
  else if (options[i] === "-input") input.push(Buffer.from(options[i + 1] + "\n"));
  else if (options[i] === "-out") outPath = options[i + 1];
  else throw new Error(`unknown option ${options[i]}`);
}

const program = JSON.parse(readFileSync(programPath, "utf8"));
for (const list of ["globals", "hidden", "tables"]) program[list] ??= [];
const { image, module, memory } = read(readFileSync(checkpointPath));
const state = image.get(2), spec = image.get(1), wasi = state.get(3);
const streams = wasi.get(3);
const stack = new Stack(program);
const began = process.hrtime.bigint();
const now = () => state.get(4) + process.hrtime.bigint() - began;

class Exit extends Error {}

// The calls of WASI preview1 that programs without files make.
let instance;
const view = () => new DataView(instance.exports[program.memory].buffer);
const bytes = (at, n) => new Uint8Array(instance.exports[program.memory].buffer, at >>> 0, n);
const EBADF = 8, EINVAL = 28, ESPIPE = 70;
const descriptor = (fd) => {
  const d = wasi.get(1)[fd];
  return d && !d.get(2) && !d.get(6) ? d : undefined; // files are not known here
};
const strings = (list) => {
  const encoded = list.map((s) => Buffer.from(s + "\0"));
  return {
    sizes(count, size) {
      view().setUint32(count, encoded.length, true);
      view().setUint32(size, encoded.reduce((n, b) => n + b.length, 0), true);
      return 0;
    },
    get(pointers, data) {
      for (const b of encoded) {
        view().setUint32(pointers, data, true);
        bytes(data, b.length).set(b);
        pointers += 4;
        data += b.length;
      }
      return 0;
    },
  };
};
const args = strings([spec.get(2), ...(spec.get(6) ?? [])]);
const environ = strings(spec.get(7) ?? []);
const vectors = function* (at, n) {
  for (let i = 0; i < n; i++, at += 8) yield bytes(view().getUint32(at, true), view().getUint32(at + 4, true));
};
// block is for a call that cannot finish: it is made again when the program is
// continued.
let waiting = false;
const block = () => {
  waiting = true;
  stack.blocked = true;
  stop.value = 0;
  return 0;
};
const calls = {
  args_sizes_get: args.sizes,
  args_get: args.get,
  environ_sizes_get: environ.sizes,
  environ_get: environ.get,
  clock_time_get(id, _precision, out) {
    view().setBigUint64(out, id === 0 ? BigInt(Date.now()) * 1000000n : now(), true);
    return 0;
  },
  fd_close(fd) {
    if (!descriptor(fd)) return EBADF;
    wasi.get(1)[fd] = new Map([[2, true]]);
    return 0;
  },
  fd_fdstat_get(fd, out) {
    const d = descriptor(fd);
    if (!d) return EBADF;
    bytes(out, 24).fill(0);
    view().setUint8(out, 2);
    view().setUint16(out + 2, Number(d.get(3) ?? 0n), true);
    view().setBigUint64(out + 8, d.get(4) ?? 0n, true);
    return 0;
  },
  fd_prestat_get: () => EBADF,
  fd_seek: (fd) => (descriptor(fd) ? ESPIPE : EBADF),
  fd_read(fd, vector, n, out) {
    const d = descriptor(fd);
    if (!d || (d.get(1) ?? 0n) !== 0n) return EBADF;
    const queue = streams.get(1) ?? [];
    if (queue.length === 0 && !streams.get(3)) return block();
    let total = 0;
    for (const to of vectors(vector, n)) {
      if (queue.length === 0) break;
      const piece = queue[0].subarray(0, to.length);
      to.set(piece);
      total += piece.length;
      queue[0] = queue[0].subarray(piece.length);
      if (queue[0].length === 0) {
        queue.shift(); // a read ends with its message
        break;
      }
    }
    if (queue.length === 0) streams.delete(1);
    view().setUint32(out, total, true);
    return 0;
  },
  fd_write(fd, vector, n, out) {
    const d = descriptor(fd);
    const stream = d?.get(1) ?? 0n;
    if (stream === 0n) return EBADF;
    const data = Buffer.concat([...vectors(vector, n)].map((b) => Buffer.from(b)));
    if (data.length > 0) {
      const list = streams.get(4) ?? [];
      const last = list[list.length - 1];
      if (last && last.get(1) === stream) last.set(2, Buffer.concat([last.get(2), data]));
      else list.push(new Map([[1, stream], [2, data]]));
      streams.set(4, list);
    }
    view().setUint32(out, data.length, true);
    return 0;
  },
  proc_exit(code) {
    throw new Exit(`exit ${code}`);
  },
};
const unknown = (name) => () => {
  throw new Error(`${name} is not known to this host`);
};

const bits = (v, type) => {
  const b = new DataView(new ArrayBuffer(8));
  switch (type) {
    case 0x7f: return BigInt(v >>> 0);
    case 0x7e: return BigInt.asUintN(64, v);
    case 0x7d: b.setFloat32(0, v); return BigInt(b.getUint32(0));
    default: b.setFloat64(0, v); return b.getBigUint64(0);
  }
};
const fromBits = (u, type) => {
  const b = new DataView(new ArrayBuffer(8));
  switch (type) {
    case 0x7f: return Number(BigInt.asIntN(32, u));
    case 0x7e: return BigInt.asIntN(64, u);
    case 0x7d: b.setUint32(0, Number(u)); return b.getFloat32(0);
    default: b.setBigUint64(0, u); return b.getFloat64(0);
  }
};

const compiled = new WebAssembly.Module(readFileSync(modulePath));
const imports = {};
for (const { module: from, name } of WebAssembly.Module.imports(compiled)) {
  imports[from] ??= {};
  if (from === "wasi_snapshot_preview1") {
    imports[from][name] = calls[name] ?? unknown(name);
  } else if (name === "next") {
    imports[from][name] = () => stack.next();
  } else if (name === "more") {
    imports[from][name] = (...units) => stack.more(units);
  } else if (name.startsWith("load")) {
    imports[from][name] = () => stack.loads(Number(name.slice(4)));
  } else if (name.startsWith("save")) {
    imports[from][name] = (which, ...units) => {
      if (stack.save(which, units)) stop.value = 0; // so that the callers stop too
    };
  }
}
instance = new WebAssembly.Instance(compiled, imports);
const stop = instance.exports["meshnode:stop"];

// Restore: the data segments go, the state comes.
const saved = decode(state.get(6));
if (Number(saved.get(1)) !== program.version) throw new Error(`state of version ${saved.get(1)} of the rewriter, not ${program.version}`);
const mem = instance.exports[program.memory];
mem.grow(Number(state.get(1)) - mem.buffer.byteLength / 65536);
bytes(0, mem.buffer.byteLength).fill(0);
for (const [page, data] of memory) bytes(page * pageSize, data.length).set(data);
program.globals.forEach((g, i) => (instance.exports[g.export].value = fromBits(saved.get(4)[i], g.type)));
const hidden = [...(saved.get(5) ?? [])].map((u) => BigInt.asIntN(64, u));
for (const h of program.hidden) {
  if (h.type === 0x7b) instance.exports[h.export + ":set"](...hidden.splice(0, 2));
  else instance.exports[h.export + ":set"](Number(hidden.shift()));
}
program.tables.forEach((name, i) => {
  const entries = saved.get(6)[i].map(Number);
  const more = entries.length - instance.exports[name + ":size"]();
  if (more > 0) instance.exports[name + ":grow"](more);
  entries.forEach((e, at) => instance.exports[name + ":set"](at, e));
});
instance.exports["meshnode:reapply"]?.();
let entry = saved.get(2) ?? "";
stack.frames = (saved.get(3) ?? []).map((f) => ({ function: Number(f.get(1)), point: Number(f.get(2)), values: [...f.get(3)] }));
for (const line of input) {
  streams.set(1, [...(streams.get(1) ?? []), line]);
  streams.set(2, (streams.get(2) ?? 0n) + 1n);
}
wasi.delete(4); // a poll that was interrupted is made again

// Run.
let how = "stopped";
stop.value = polls;
try {
  if (entry !== "" && polls > 0) {
    instance.exports["meshnode:run"]();
  }
  if (polls > 0 && !stack.stopped()) {
    for (const next of entry === "" ? [program.start, "_start"] : entry === "_start" ? [] : ["_start"]) {
      if (next === "") continue;
      entry = next;
      instance.exports[next]();
      if (stack.stopped()) break;
    }
  }
  if (polls > 0 && stack.frames.length === 0) how = "exit 0";
  else if (waiting) how = "waiting";
} catch (e) {
  if (!(e instanceof Exit)) throw e;
  how = e.message;
}

const text = (streams.get(4) ?? []).filter((o) => o.get(1) === 1n).map((o) => o.get(2));
process.stdout.write(Buffer.concat([...(image.get(9) ? [image.get(9)[0] ?? Buffer.alloc(0)] : []), ...text]));
if (outPath && stack.frames.length > 0) {
  saved.set(2, entry);
  saved.set(3, stack.frames.map((f) => new Map([[1, f.function], [2, f.point], [3, f.values]])));
  if (program.globals.length > 0) saved.set(4, program.globals.map((g) => bits(instance.exports[g.export].value, g.type)));
  const units = program.hidden.flatMap((h) => [instance.exports[h.export + ":get"]()].flat().map((u) => BigInt.asUintN(64, BigInt(u))));
  if (units.length > 0) saved.set(5, units);
  if (program.tables.length > 0) {
    saved.set(6, program.tables.map((name) =>
      Array.from({ length: instance.exports[name + ":size"]() }, (_, at) => instance.exports[name + ":get"](at) >>> 0)));
  }
  state.set(6, encode(saved));
  state.set(4, now());
  state.set(1, mem.buffer.byteLength / 65536);
  const layout = Buffer.alloc(12); // pages, and two empty lists of runs
  layout.writeUInt32BE(mem.buffer.byteLength / pageSize);
  image.set(8, layout);
  writeFileSync(outPath, write(image, module, bytes(0, mem.buffer.byteLength)));
}
const digest = createHash("sha256").update(bytes(0, mem.buffer.byteLength)).digest("hex");
process.stderr.write(`${how} memory ${digest}\n`);
