//! A server that greets as Redis does and answers what is asked as its script says.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

/// A command and its arguments.
pub(crate) struct Command(Vec<Vec<u8>>);

impl Command {
    /// The first that is whole, taken out of what was read.
    fn take(read: &mut Vec<u8>) -> Option<Self> {
        let mut at = 0;
        let number = |mark: u8, at: &mut usize| {
            let end = *at + read[*at..].iter().position(|byte| *byte == b'\n')?;
            assert_eq!(read[*at], mark);
            let digits = std::str::from_utf8(&read[*at + 1..end - 1]).unwrap();
            *at = end + 1;
            digits.parse::<usize>().ok()
        };
        let count = number(b'*', &mut at)?;
        let mut words = Vec::new();
        for _ in 0..count {
            let len = number(b'$', &mut at)?;
            words.push(read.get(at..at + len)?.to_vec());
            at += len + 2;
        }
        (at <= read.len()).then(|| read.drain(..at).count())?;
        Some(Self(words))
    }

    pub(crate) fn name(&self) -> &str {
        self.word(0)
    }

    pub(crate) fn word(&self, number: usize) -> &str {
        std::str::from_utf8(&self.0[number]).unwrap()
    }
}

/// The server; it ends with the `LocalSet`.
pub(crate) struct Server {
    address: SocketAddr,
    connections: Rc<Cell<usize>>,
    greetings: Rc<Cell<usize>>,
}

impl Server {
    /// Within a `LocalSet`. Where the script says nothing, nil is said before whatever is said next: answers keep their order.
    pub(crate) async fn start(answer: impl Fn(&Command) -> Vec<u8> + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, greetings) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let server = Self { address, connections: Rc::clone(&connections), greetings: Rc::clone(&greetings) };
        let answer = Rc::new(answer);
        spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.set(connections.get() + 1);
                let (answer, greetings) = (Rc::clone(&answer), Rc::clone(&greetings));
                spawn_local(serve(stream, greetings, move |command| answer(command)));
            }
        });
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.get()
    }

    /// PINGs so far.
    pub(crate) fn greetings(&self) -> usize {
        self.greetings.get()
    }
}

async fn serve(mut stream: TcpStream, greetings: Rc<Cell<usize>>, answer: impl Fn(&Command) -> Vec<u8>) {
    let (mut read, mut chunk, mut owed) = (Vec::new(), vec![0; 64 << 10], 0);
    while let Ok(len @ 1..) = stream.read(&mut chunk).await {
        read.extend_from_slice(&chunk[..len]);
        while let Some(command) = Command::take(&mut read) {
            let answer = match command.name() {
                "HELLO" => b"%1\r\n+proto\r\n:3\r\n".to_vec(),
                "CLIENT" | "SELECT" => b"+OK\r\n".to_vec(),
                "PING" => {
                    greetings.set(greetings.get() + 1);
                    b"+PONG\r\n".to_vec()
                }
                _ => answer(&command),
            };
            owed += 1;
            if answer.is_empty() {
                continue;
            }
            let late = b"$-1\r\n".repeat(core::mem::take(&mut owed) - 1);
            if stream.write_all(&[late, answer].concat()).await.is_err() {
                return;
            }
        }
    }
}
