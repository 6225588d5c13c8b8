// The host's part of stopping and continuing a program: what suspend.Stack is in
// Go. A program's description is suspend.Description.

export class Stack {
  constructor(program) {
    this.p = program;
    this.byIndex = new Map(program.functions.map((f, i) => [f[0], i]));
    this.frames = []; // outermost first: {function, point, values}
    this.unwound = []; // innermost first
    this.unwinding = this.blocked = false;
    this.units = [];
    this.load = [];
    this.results = [];
  }

  point(frame) {
    const [, , first] = this.p.functions[this.byIndex.get(frame.function)];
    return this.p.points[first + frame.point];
  }

  // next says which function's frame is to be continued.
  next() {
    if (this.frames.length === 0 || this.unwinding) return -1;
    const f = this.frames.pop();
    const number = this.byIndex.get(f.function);
    const [, , , , ways, units] = this.p.functions[number];
    const [, , , region, target, first, values] = this.point(f);
    this.load = new Array(ways + units).fill(0n);
    for (let r = region, t = target; r >= 0; ) {
      const [parent, up, depth] = this.p.regions[r];
      this.load[depth] = BigInt(t);
      [r, t] = [parent, up];
    }
    let from = 0;
    for (let j = first; j < first + values; j++) {
      for (let k = 0; k < this.p.units[j]; k++) this.load[ways + this.p.places[j] + k] = f.values[from++];
    }
    this.running = number;
    return number;
  }

  // loads returns the next n units of the frame.
  loads(n) {
    const out = this.load.splice(0, n);
    while (out.length < n) out.push(0n);
    return out.map((u) => BigInt.asIntN(64, u));
  }

  more(units) {
    this.units.push(...units.map((u) => BigInt.asUintN(64, u)));
  }

  // save takes a frame, or, if which is -1, the results of the function that was
  // continued. It returns whether it was a frame.
  save(which, units) {
    this.more(units);
    const all = this.units;
    this.units = [];
    if (which < 0) {
      this.finish(all);
      return false;
    }
    let id = which >> 1;
    let point = this.p.points[id];
    let skip = 0; // results, which a call that blocked has not left
    if (this.blocked && !this.unwinding) {
      skip = point[2];
      point = this.p.points[--id];
      if (!point || !point[1]) throw new Error("a host function that cannot block has blocked");
    }
    this.blocked = false;
    this.unwinding = true;
    const [number, , args, , , first, values, n] = point;
    const saved = [];
    if (which & 1) {
      for (let j = first; j < first + values; j++) {
        for (let k = 0; k < this.p.units[j]; k++) saved.push(all[this.p.places[j] + k]);
      }
    } else if (skip > 0) {
      saved.push(...all.slice(0, n - args), ...all.slice(n - args + skip, n + skip));
    } else {
      saved.push(...all.slice(0, n));
    }
    const [index, , firstPoint] = this.p.functions[number];
    this.unwound.push({ function: index, point: id - firstPoint, values: saved });
    return true;
  }

  // finish hands results to the frame that waits for them.
  finish(results) {
    if (this.frames.length === 0) {
      this.results = results.slice(0, this.p.functions[this.running][1]);
      return;
    }
    const f = this.frames[this.frames.length - 1];
    const n = this.point(f)[2];
    f.values.splice(f.values.length - n, n, ...results.slice(0, n));
  }

  // stopped says whether the program has stopped, rather than finished.
  stopped() {
    if (!this.unwinding) return false;
    this.unwinding = false;
    this.frames.push(...this.unwound.reverse());
    this.unwound = [];
    return true;
  }
}
