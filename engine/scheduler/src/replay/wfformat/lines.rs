//! On which line something of a JSON text stands, for errors: values that were parsed do not know it any more.

/// A place in a text that is valid JSON.
struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Steps over white space and one of these, if it is next.
    fn pass(&mut self, one_of: &[u8]) -> bool {
        let space = |scan: &mut Self| {
            while scan.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
                scan.at += 1;
            }
        };
        space(self);
        let is_next = self.peek().is_some_and(|byte| one_of.contains(&byte));
        self.at += usize::from(is_next);
        space(self);
        is_next
    }

    /// Steps over a string; what is between its quotes, as it is written.
    fn string(&mut self) -> &'a [u8] {
        let from = self.at + 1;
        self.at = from;
        while self.peek().is_some_and(|byte| byte != b'"') {
            self.at += if self.peek() == Some(b'\\') { 2 } else { 1 };
        }
        let end = self.at.min(self.text.len());
        self.at = end + 1;
        &self.text[from.min(end)..end]
    }

    /// Steps over a value.
    fn skip(&mut self) {
        let mut depth = 0usize;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    self.string();
                    if depth == 0 {
                        return;
                    }
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' | b',' if depth == 0 => return,
                b'}' | b']' => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        return;
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
    }

    /// Goes to the value of an object's member.
    fn member(&mut self, name: &str) -> bool {
        if !self.pass(b"{") {
            return false;
        }
        while self.peek() == Some(b'"') {
            let is_it = self.string() == name.as_bytes();
            self.pass(b":");
            if is_it {
                return true;
            }
            self.skip();
            self.pass(b",");
        }
        false
    }

    fn line(&self) -> usize {
        1 + self.text[..self.at.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count()
    }
}

/// The line of what is at `path`, or of what it is missing in.
pub(super) fn at(text: &str, path: &[&str]) -> usize {
    let mut scan = Scan { text: text.as_bytes(), at: 0 };
    let mut line = 1;
    for name in path {
        scan.pass(b"");
        line = scan.line();
        if !scan.member(name) {
            return line;
        }
        line = scan.line();
    }
    line
}

/// The line of an element of the array at `path`: of its id, or where it has none where it begins.
pub(super) fn of_element(text: &str, path: &[&str], place: usize) -> usize {
    let mut scan = Scan { text: text.as_bytes(), at: 0 };
    if !path.iter().all(|name| scan.member(name)) || !scan.pass(b"[") {
        return at(text, path);
    }
    for _ in 0..place {
        scan.skip();
        scan.pass(b",");
    }
    let line = scan.line();
    if scan.member("id") { scan.line() } else { line }
}
