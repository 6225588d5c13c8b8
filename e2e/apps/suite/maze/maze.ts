// maze: carves mazes and finds the shortest ways through them; classes, generics,
// functions as values, maps, strings, recursion and much garbage. What the
// compiler is told about WASI is all here: it has no library for that.

// @ts-ignore: a decorator
@external("wasi_snapshot_preview1", "args_sizes_get")
declare function args_sizes_get(count: usize, size: usize): i32;

// @ts-ignore: a decorator
@external("wasi_snapshot_preview1", "args_get")
declare function args_get(pointers: usize, bytes: usize): i32;

// @ts-ignore: a decorator
@external("wasi_snapshot_preview1", "fd_write")
declare function fd_write(fd: i32, vectors: usize, count: i32, written: usize): i32;

// @ts-ignore: a decorator
@external("wasi_snapshot_preview1", "proc_exit")
declare function proc_exit(code: i32): void;

const scratch = memory.data(16);

function write(fd: i32, text: string): void {
	const bytes = Uint8Array.wrap(String.UTF8.encode(text));
	for (let done: u32 = 0; done < <u32>bytes.length; done += load<u32>(scratch, 8)) {
		store<usize>(scratch, bytes.dataStart + done);
		store<u32>(scratch, bytes.length - done, 4);
		if (fd_write(fd, scratch, 1, scratch + 8) != 0) proc_exit(1);
	}
}

// wasi_abort is called where the language's own checks fail.
// @ts-ignore: a decorator
@global
function wasi_abort(message: string | null, file: string | null, line: u32, column: u32): void {
	write(2, `${file ? file : "?"}:${line}:${column}: ${message ? message : "abort"}\n`);
	proc_exit(255);
}

// sizeArgument is the first argument, or what a short run takes.
function sizeArgument(otherwise: i32): i32 {
	if (args_sizes_get(scratch, scratch + 4) != 0 || load<u32>(scratch) < 2) return otherwise;
	const pointers = new StaticArray<usize>(load<u32>(scratch));
	const bytes = new StaticArray<u8>(load<u32>(scratch, 4));
	if (args_get(changetype<usize>(pointers), changetype<usize>(bytes)) != 0) return otherwise;
	const first = <i32>(pointers[1] - changetype<usize>(bytes));
	const text = String.UTF8.decodeUnsafe(pointers[1], bytes.length - first, true);
	return <i32>parseInt(text);
}

// Random is xorshift64 (G. Marsaglia, "Xorshift RNGs", 2003).
class Random {
	private state: u64 = 88172645463325252;

	below(n: i32): i32 {
		this.state ^= this.state << 13;
		this.state ^= this.state >> 7;
		this.state ^= this.state << 17;
		return <i32>((this.state >> 11) % n);
	}
}

const EAST = 0, SOUTH = 1, WEST = 2; // and north is 3; d ^ 2 is opposite to d

class Maze {
	// A bit for each side of a cell that is open.
	private sides: StaticArray<u8>;

	constructor(readonly width: i32, readonly height: i32, private random: Random) {
		this.sides = new StaticArray<u8>(width * height);
		this.carve(0);
		for (let i = 0; i < width; i++) { // so that there is more than one way
			const cell = random.below(width * height), d = random.below(4);
			if (this.beside(cell, d) >= 0) this.open(cell, d);
		}
	}

	// beside is the cell on a side of another one, or -1.
	beside(cell: i32, d: i32): i32 {
		const x = cell % this.width, y = cell / this.width;
		if (d == EAST) return x + 1 < this.width ? cell + 1 : -1;
		if (d == SOUTH) return y + 1 < this.height ? cell + this.width : -1;
		if (d == WEST) return x > 0 ? cell - 1 : -1;
		return y > 0 ? cell - this.width : -1;
	}

	isOpen(cell: i32, d: i32): bool {
		return (this.sides[cell] >> <u8>d & 1) != 0;
	}

	private open(cell: i32, d: i32): void {
		this.sides[cell] |= <u8>1 << <u8>d;
		this.sides[this.beside(cell, d)] |= <u8>1 << <u8>(d ^ 2);
	}

	// carve opens a way from a cell to all that have none yet.
	private carve(cell: i32): void {
		const first = this.random.below(4), turn = this.random.below(2) ? 1 : 3;
		for (let i = 0; i < 4; i++) {
			const d = (first + i * turn) & 3, next = this.beside(cell, d);
			if (next >= 0 && this.sides[next] == 0) {
				this.open(cell, d);
				this.carve(next);
			}
		}
	}

	draw(way: Set<i32>): string {
		let text = "";
		for (let y = 0; y < this.height; y++) {
			let line = "";
			for (let x = 0; x < this.width; x++) {
				const cell = y * this.width + x;
				line += way.has(cell) ? "*" : this.isOpen(cell, SOUTH) ? " " : "_";
				line += this.isOpen(cell, EAST) ? " " : "|";
			}
			text += line + "\n";
		}
		return text;
	}
}

// A Heap gives back what was put into it, the first by its order first.
class Heap<T> {
	private items: T[] = [];

	constructor(private before: (a: T, b: T) => bool) {}

	get empty(): bool {
		return this.items.length == 0;
	}

	push(item: T): void {
		const items = this.items;
		let i = items.push(item) - 1;
		for (let up = (i - 1) >> 1; i > 0 && this.before(item, items[up]); up = (i - 1) >> 1) {
			items[i] = items[up];
			i = up;
		}
		items[i] = item;
	}

	pop(): T {
		const items = this.items, top = items[0], last = items.pop();
		if (items.length == 0) return top;
		let i = 0;
		for (let down = 1; down < items.length; down = 2 * i + 1) {
			if (down + 1 < items.length && this.before(items[down + 1], items[down])) down++;
			if (!this.before(items[down], last)) break;
			items[i] = items[down];
			i = down;
		}
		items[i] = last;
		return top;
	}
}

// A Step is a cell on a way, and how the way came there.
class Step {
	constructor(readonly cell: i32, readonly length: i32, readonly guess: i32, readonly from: Step | null) {}
}

// shortest is the A* search (Hart, Nilsson and Raphael, 1968).
function shortest(maze: Maze, from: i32, to: i32): Step {
	const open = new Heap<Step>((a, b) => a.guess != b.guess ? a.guess < b.guess : a.cell < b.cell);
	const best = new Map<i32, i32>();
	open.push(new Step(from, 0, 0, null));
	best.set(from, 0);
	while (!open.empty) {
		const step = open.pop();
		if (step.cell == to) return step;
		for (let d = 0; d < 4; d++) {
			if (!maze.isOpen(step.cell, d)) continue;
			const next = maze.beside(step.cell, d), length = step.length + 1;
			if (best.has(next) && best.get(next) <= length) continue;
			best.set(next, length);
			const left = abs(to % maze.width - next % maze.width) + abs(to / maze.width - next / maze.width);
			open.push(new Step(next, length, length + left, step));
		}
	}
	throw new Error("there is no way");
}

const count = sizeArgument(6), random = new Random();
let sum: u64 = 0, text = "";
for (let i = 0; i < count; i++) {
	const maze = new Maze(36, 18, random);
	const end = shortest(maze, 0, 36 * 18 - 1);
	const way = new Set<i32>();
	for (let s: Step | null = end; s; s = s.from) {
		way.add(s.cell);
		sum = (sum ^ s.cell) * 0x9e3779b97f4a7c15;
	}
	text = maze.draw(way) + `${end.length} steps\n`;
}
write(1, text + `sum ${sum}\n`);
