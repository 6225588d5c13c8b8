//! derive: reads formulas, differentiates them and checks the result; trees that
//! share their parts, closures, generics, maps, strings and errors as values.

use std::collections::HashMap;
use std::fmt;
use std::ops;
use std::rc::Rc;

enum Expr {
    Number(f64),
    X,
    Add(Rc<Expr>, Rc<Expr>),
    Mul(Rc<Expr>, Rc<Expr>),
    Sin(Rc<Expr>),
    Cos(Rc<Expr>),
}

use Expr::*;

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Number(n) => write!(f, "{}", n),
            X => write!(f, "x"),
            Add(a, b) => write!(f, "({}+{})", a, b),
            Mul(a, b) => write!(f, "{}*{}", a, b),
            Sin(a) => write!(f, "sin({})", a),
            Cos(a) => write!(f, "cos({})", a),
        }
    }
}

enum ParseError {
    Unexpected(u8),
    End,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            ParseError::Unexpected(c) => write!(f, "unexpected {:?}", *c as char),
            ParseError::End => write!(f, "unexpected end"),
        }
    }
}

type Parsed = Result<Rc<Expr>, ParseError>;

struct Parser<'a> {
    rest: &'a [u8],
}

impl<'a> Parser<'a> {
    fn parse(text: &'a str) -> Parsed {
        let mut p = Parser { rest: text.as_bytes() };
        let e = p.sum()?;
        match p.rest.first() {
            Some(&c) => Err(ParseError::Unexpected(c)),
            None => Ok(e),
        }
    }

    fn eat(&mut self, word: &str) -> bool {
        match self.rest.strip_prefix(word.as_bytes()) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn sum(&mut self) -> Parsed {
        let mut e = self.product()?;
        while self.eat("+") {
            e = Rc::new(Add(e, self.product()?));
        }
        Ok(e)
    }

    fn product(&mut self) -> Parsed {
        let mut e = self.factor()?;
        while self.eat("*") {
            e = Rc::new(Mul(e, self.factor()?));
        }
        Ok(e)
    }

    fn factor(&mut self) -> Parsed {
        if self.eat("x") {
            return Ok(Rc::new(X));
        }
        let wrap: Option<fn(Rc<Expr>) -> Expr> = match () {
            _ if self.eat("sin(") => Some(Sin),
            _ if self.eat("cos(") => Some(Cos),
            _ if self.eat("(") => None,
            _ => return self.number(),
        };
        let e = self.sum()?;
        if !self.eat(")") {
            return Err(self.unexpected());
        }
        Ok(match wrap {
            Some(w) => Rc::new(w(e)),
            None => e,
        })
    }

    fn number(&mut self) -> Parsed {
        let digits = self.rest.iter().take_while(|c| c.is_ascii_digit()).count();
        let (number, rest) = self.rest.split_at(digits);
        match String::from_utf8_lossy(number).parse() {
            Ok(n) => {
                self.rest = rest;
                Ok(Rc::new(Number(n)))
            }
            Err(_) => Err(self.unexpected()),
        }
    }

    fn unexpected(&self) -> ParseError {
        match self.rest.first() {
            Some(&c) => ParseError::Unexpected(c),
            None => ParseError::End,
        }
    }
}

fn add(a: Rc<Expr>, b: Rc<Expr>) -> Rc<Expr> {
    match (&*a, &*b) {
        (Number(n), _) if *n == 0.0 => b,
        (_, Number(n)) if *n == 0.0 => a,
        (Number(n), Number(m)) => Rc::new(Number(n + m)),
        _ => Rc::new(Add(a, b)),
    }
}

fn mul(a: Rc<Expr>, b: Rc<Expr>) -> Rc<Expr> {
    match (&*a, &*b) {
        (Number(n), _) if *n == 0.0 => a,
        (_, Number(n)) if *n == 0.0 => b,
        (Number(n), _) if *n == 1.0 => b,
        (_, Number(n)) if *n == 1.0 => a,
        (Number(n), Number(m)) => Rc::new(Number(n * m)),
        _ => Rc::new(Mul(a, b)),
    }
}

fn derive(e: &Rc<Expr>) -> Rc<Expr> {
    match &**e {
        Number(_) => Rc::new(Number(0.0)),
        X => Rc::new(Number(1.0)),
        Add(a, b) => add(derive(a), derive(b)),
        Mul(a, b) => add(mul(derive(a), b.clone()), mul(a.clone(), derive(b))),
        Sin(a) => mul(Rc::new(Cos(a.clone())), derive(a)),
        Cos(a) => mul(mul(Rc::new(Number(-1.0)), Rc::new(Sin(a.clone()))), derive(a)),
    }
}

/// What a formula can be evaluated in.
trait Value: Copy + ops::Add<Output = Self> + ops::Mul<Output = Self> {
    fn number(n: f64) -> Self;
    fn sin(self) -> Self;
    fn cos(self) -> Self;
}

impl Value for f64 {
    fn number(n: f64) -> f64 {
        n
    }
    fn sin(self) -> f64 {
        f64::sin(self)
    }
    fn cos(self) -> f64 {
        f64::cos(self)
    }
}

/// A value and its derivative, which gives a formula's without deriving it.
#[derive(Clone, Copy)]
struct Dual(f64, f64);

impl ops::Add for Dual {
    type Output = Dual;
    fn add(self, o: Dual) -> Dual {
        Dual(self.0 + o.0, self.1 + o.1)
    }
}

impl ops::Mul for Dual {
    type Output = Dual;
    fn mul(self, o: Dual) -> Dual {
        Dual(self.0 * o.0, self.1 * o.0 + self.0 * o.1)
    }
}

impl Value for Dual {
    fn number(n: f64) -> Dual {
        Dual(n, 0.0)
    }
    fn sin(self) -> Dual {
        Dual(self.0.sin(), self.0.cos() * self.1)
    }
    fn cos(self) -> Dual {
        Dual(self.0.cos(), -self.0.sin() * self.1)
    }
}

/// Makes a formula a function.
fn compile<T: Value + 'static>(e: &Expr) -> Box<dyn Fn(T) -> T> {
    match e {
        Number(n) => {
            let n = T::number(*n);
            Box::new(move |_| n)
        }
        X => Box::new(|x| x),
        Add(a, b) => {
            let (a, b) = (compile(a), compile(b));
            Box::new(move |x| a(x) + b(x))
        }
        Mul(a, b) => {
            let (a, b) = (compile(a), compile(b));
            Box::new(move |x| a(x) * b(x))
        }
        Sin(a) => {
            let a = compile::<T>(a);
            Box::new(move |x| a(x).sin())
        }
        Cos(a) => {
            let a = compile::<T>(a);
            Box::new(move |x| a(x).cos())
        }
    }
}

/// xorshift64 (G. Marsaglia, "Xorshift RNGs", 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    fn formula(&mut self, depth: u32, out: &mut String) {
        match self.below(if depth == 0 { 2 } else { 8 }) {
            0 => out.push('x'),
            1 => out.push_str(&(self.below(9) + 1).to_string()),
            kind @ 2..=5 => {
                out.push('(');
                self.formula(depth - 1, out);
                out.push(if kind < 4 { '+' } else { '*' });
                self.formula(depth - 1, out);
                out.push(')');
            }
            kind => {
                out.push_str(if kind == 6 { "sin(" } else { "cos(" });
                self.formula(depth - 1, out);
                out.push(')');
            }
        }
    }
}

fn main() {
    let count: u32 = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(60);
    let mut random = Random(88172645463325252);
    let mut faults: HashMap<String, u32> = HashMap::new();
    let mut seen: HashMap<String, u32> = HashMap::new();
    let (mut parsed, mut agree, mut sum, mut longest) = (0, 0, 0.0, String::new());
    for i in 0..count {
        let mut text = String::new();
        random.formula(6, &mut text);
        if i % 4 == 3 {
            text.remove(random.below(text.len() as u64) as usize);
        }
        let formula = match Parser::parse(&text) {
            Ok(e) => e,
            Err(e) => {
                *faults.entry(e.to_string()).or_insert(0) += 1;
                continue;
            }
        };
        parsed += 1;
        let derived = derive(&formula);
        let (exact, dual) = (compile::<f64>(&derived), compile::<Dual>(&formula));
        let close = (-8..=8).map(|n| n as f64 / 8.0).all(|x| {
            let (a, b) = (exact(x), dual(Dual(x, 1.0)).1);
            sum += a / (1.0 + a.abs());
            (a - b).abs() <= 1e-9 * (1.0 + a.abs())
        });
        agree += close as u32;
        let text = derived.to_string();
        if text.len() > longest.len() && text.len() < 100 {
            longest = text.clone();
        }
        *seen.entry(text).or_insert(0) += 1;
    }
    println!("{} of {} agree, {} different, sum {:.9}", agree, parsed, seen.len(), sum);
    println!("{}", longest);
    let mut faults: Vec<_> = faults.into_iter().collect();
    faults.sort();
    for (fault, n) in faults {
        println!("{}: {}", fault, n);
    }
}
