// treap: a search tree balanced by chance, beside a sorted list that does the
// same slowly; generics, optionals, errors, defer and two allocators. For Zig 0.11.

const std = @import("std");
const Allocator = std.mem.Allocator;

// xorshift64 (G. Marsaglia, "Xorshift RNGs", 2003).
const Random = struct {
    state: u64 = 88172645463325252,

    fn next(r: *Random) u64 {
        r.state ^= r.state << 13;
        r.state ^= r.state >> 7;
        r.state ^= r.state << 17;
        return r.state;
    }
};

// Treap is an ordered map (R. Seidel and C. Aragon, "Randomized Search Trees",
// 1996): a search tree by its keys, a heap by numbers drawn at random.
fn Treap(comptime Key: type, comptime Value: type, comptime order: fn (Key, Key) std.math.Order) type {
    return struct {
        const Self = @This();
        const Node = struct {
            key: Key,
            value: Value,
            rank: u64,
            count: usize = 1,
            left: ?*Node = null,
            right: ?*Node = null,

            fn recount(n: *Node) *Node {
                n.count = 1 + size(n.left) + size(n.right);
                return n;
            }
        };
        const Halves = struct { below: ?*Node, rest: ?*Node };

        allocator: Allocator,
        random: *Random,
        root: ?*Node = null,

        fn deinit(t: *Self) void {
            t.free(t.root);
            t.* = undefined;
        }

        fn free(t: *Self, node: ?*Node) void {
            const n = node orelse return;
            t.free(n.left);
            t.free(n.right);
            t.allocator.destroy(n);
        }

        fn size(node: ?*Node) usize {
            return if (node) |n| n.count else 0;
        }

        fn split(node: ?*Node, key: Key) Halves {
            const n = node orelse return .{ .below = null, .rest = null };
            if (order(n.key, key) == .lt) {
                const halves = split(n.right, key);
                n.right = halves.below;
                return .{ .below = n.recount(), .rest = halves.rest };
            }
            const halves = split(n.left, key);
            n.left = halves.rest;
            return .{ .below = halves.below, .rest = n.recount() };
        }

        fn join(left: ?*Node, right: ?*Node) ?*Node {
            const l = left orelse return right;
            const r = right orelse return left;
            if (l.rank > r.rank) {
                l.right = join(l.right, r);
                return l.recount();
            }
            r.left = join(l, r.left);
            return r.recount();
        }

        fn find(t: *const Self, key: Key) ?*Value {
            var node = t.root;
            while (node) |n| {
                switch (order(key, n.key)) {
                    .lt => node = n.left,
                    .gt => node = n.right,
                    .eq => return &n.value,
                }
            }
            return null;
        }

        fn put(t: *Self, key: Key, value: Value) !void {
            if (t.find(key)) |old| {
                old.* = value;
                return;
            }
            const n = try t.allocator.create(Node);
            n.* = .{ .key = key, .value = value, .rank = t.random.next() };
            const halves = split(t.root, key);
            t.root = join(join(halves.below, n), halves.rest);
        }

        fn remove(t: *Self, key: Key) error{NotFound}!Value {
            return t.removeFrom(&t.root, key);
        }

        fn removeFrom(t: *Self, place: *?*Node, key: Key) error{NotFound}!Value {
            const n = place.* orelse return error.NotFound;
            const value = switch (order(key, n.key)) {
                .lt => try t.removeFrom(&n.left, key),
                .gt => try t.removeFrom(&n.right, key),
                .eq => {
                    defer t.allocator.destroy(n);
                    place.* = join(n.left, n.right);
                    return n.value;
                },
            };
            _ = n.recount();
            return value;
        }

        // each calls a function with every key and value, in order.
        fn each(node: ?*Node, context: anytype) !void {
            const n = node orelse return;
            try each(n.left, context);
            try context.visit(n.key, n.value);
            try each(n.right, context);
        }

        fn depth(node: ?*Node) usize {
            const n = node orelse return 0;
            return 1 + @max(depth(n.left), depth(n.right));
        }
    };
}

fn byText(a: []const u8, b: []const u8) std.math.Order {
    return std.mem.order(u8, a, b);
}

const Words = Treap([]const u8, u32, byText);

const Compare = struct {
    const Pair = struct { word: []const u8, count: u32 };
    sorted: []const Pair,
    at: usize = 0,

    fn visit(c: *Compare, word: []const u8, count: u32) error{Different}!void {
        if (c.at == c.sorted.len) return error.Different;
        const want = c.sorted[c.at];
        if (!std.mem.eql(u8, word, want.word) or count != want.count) return error.Different;
        c.at += 1;
    }
};

pub fn main() !void {
    var general = std.heap.GeneralPurposeAllocator(.{}){};
    defer _ = general.deinit();
    var arena = std.heap.ArenaAllocator.init(general.allocator());
    defer arena.deinit();

    var count: u32 = 2000;
    const args = try std.process.argsAlloc(arena.allocator());
    if (args.len > 1) count = try std.fmt.parseInt(u32, args[1], 10);

    var random = Random{};
    var words = Words{ .allocator = general.allocator(), .random = &random };
    defer words.deinit();
    var sorted = std.ArrayList(Compare.Pair).init(general.allocator());
    defer sorted.deinit();

    var missing: u32 = 0;
    var removed: u64 = 0;
    for (0..count) |i| {
        const word = try std.fmt.allocPrint(arena.allocator(), "w{x}", .{random.next() >> 32 & 0x3ff});
        var at: usize = 0;
        var end = sorted.items.len;
        while (at < end) {
            const middle = (at + end) / 2;
            if (byText(sorted.items[middle].word, word) == .lt) at = middle + 1 else end = middle;
        }
        const found = at < sorted.items.len and std.mem.eql(u8, sorted.items[at].word, word);
        if (i % 3 == 2) {
            if (words.remove(word)) |n| {
                removed += n;
                if (!found or sorted.orderedRemove(at).count != n) return error.Different;
            } else |err| switch (err) {
                error.NotFound => missing += 1,
            }
            continue;
        }
        const n = 1 + if (words.find(word)) |old| old.* else 0;
        try words.put(word, n);
        if (found) {
            sorted.items[at].count = n;
        } else {
            try sorted.insert(at, .{ .word = word, .count = n });
        }
        if (i % 64 == 0) {
            var compare = Compare{ .sorted = sorted.items };
            try Words.each(words.root, &compare);
            if (compare.at != sorted.items.len or compare.at != Words.size(words.root)) return error.Different;
        }
    }

    var most: usize = 0;
    for (sorted.items, 0..) |pair, i| {
        if (pair.count > sorted.items[most].count) most = i;
    }
    const out = std.io.getStdOut().writer();
    try out.print("{d} words, {d} deep, {d} removed, {d} not found\n", .{ Words.size(words.root), Words.depth(words.root), removed, missing });
    try out.print("most often {s}: {d}\n", .{ sorted.items[most].word, sorted.items[most].count });
}
