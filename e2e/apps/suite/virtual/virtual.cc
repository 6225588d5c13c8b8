// virtual: objects with virtual functions in containers; no exceptions.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace {

struct Shape {
	virtual ~Shape() = default;
	virtual double area() const = 0;
	virtual std::string name() const { return "shape"; }
};

struct Square final : Shape {
	explicit Square(double a) : a(a) {}
	double area() const override { return a * a; }
	std::string name() const override { return "square"; }
	double a;
};

struct Circle final : Shape {
	explicit Circle(double r) : r(r) {}
	double area() const override { return 3.25 * r * r; }
	std::string name() const override { return "circle"; }
	double r;
};

struct Pair final : Shape {
	Pair(std::unique_ptr<Shape> a, std::unique_ptr<Shape> b) : a(std::move(a)), b(std::move(b)) {}
	double area() const override { return a->area() + b->area(); }
	std::string name() const override { return a->name() + "+" + b->name(); }
	std::unique_ptr<Shape> a, b;
};

std::unique_ptr<Shape> make(unsigned kind, int depth) {
	switch (kind % 3) {
	case 0:
		return std::make_unique<Square>(kind % 17);
	case 1:
		return std::make_unique<Circle>(kind % 13);
	}
	if (depth == 0)
		return std::make_unique<Square>(1);
	return std::make_unique<Pair>(make(kind * 7 + 1, depth - 1), make(kind * 5 + 3, depth - 1));
}

} // namespace

int main(int argc, char **argv) {
	long n = argc > 1 ? std::strtol(argv[1], nullptr, 10) : 20;
	double total = 0;
	std::map<std::string, long> names;
	for (long round = 0; round < n; round++) {
		std::vector<std::unique_ptr<Shape>> shapes;
		for (unsigned i = 0; i < 40; i++)
			shapes.push_back(make(static_cast<unsigned>(round) + i, 3));
		std::sort(shapes.begin(), shapes.end(), [](const auto &a, const auto &b) { return a->area() < b->area(); });
		for (const auto &s : shapes) {
			total += s->area();
			names[s->name()]++;
		}
	}
	std::printf("%.2f in %zu kinds\n", total, names.size());
	for (const auto &[name, count] : names)
		if (name.size() < 14)
			std::printf("%s: %ld\n", name.c_str(), count);
	return 0;
}
