//! The control socket: one JSON line asks, one JSON line answers, then the connection ends. `tcptwin stats`, `top` and
//! `ctl` are its clients; anything that can write to a Unix socket may be.
//!
//! The server never waits for a client: it is called by the supervisor's loop when the socket is readable, takes what is
//! there, writes what fits. Clients, their input and their time are bounded; those beyond are closed and forgotten.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{place, words};

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Request {
    /// The state, as `stats --json` prints it.
    Stats,
    /// Start nothing new.
    Pause,
    /// Undo that.
    Resume,
    /// Drain and end.
    Stop,
    /// Share of flows.
    Percent {
        /// Parts per million.
        ppm: u32,
    },
    /// Copies of each flow.
    Copies {
        /// Thousandths.
        milli: u32,
    },
    /// Go on as the program that stands at the path of this one now.
    Upgrade,
    /// Capture and send nothing any more, now, and end.
    Halt,
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reply {
    /// It was done; the state, or what there is to say.
    Ok(Value),
    /// It was not, and why.
    Error(String),
}

/// Clients at a time.
const MAX_CLIENTS: usize = 16;
/// Longest request, bytes.
const MAX_REQUEST: usize = 4096;
/// Time a client has from its connection to its last byte.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest reply that a client of ours takes, bytes.
const MAX_REPLY: u64 = 16 << 20;

/// The listening end.
#[derive(Debug)]
pub(crate) struct Server {
    listener: Option<UnixListener>,
    path: PathBuf,
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    since: Instant,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
}

impl Server {
    /// Listens at DIR/NAME.sock, for this user only. The caller holds the instance's lock, so a socket that stands there
    /// is a dead instance's and is replaced.
    pub(crate) fn bind(dir: &Path, name: &str) -> io::Result<Self> {
        let path = dir.join(format!("{name}.sock"));
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener: Some(listener), path, clients: Vec::new() })
    }

    /// The one that the image before listened with.
    pub(crate) fn inherit(dir: &Path, name: &str, number: RawFd) -> io::Result<Self> {
        let listener = UnixListener::from(shm::inherit(number)?);
        Ok(Self { listener: Some(listener), path: dir.join(format!("{name}.sock")), clients: Vec::new() })
    }

    /// The listening socket, for the next image.
    pub(crate) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(UnixListener::as_fd)
    }

    /// One that nobody can reach: stands in while the real one is at work.
    pub(crate) fn closed() -> Self {
        Self { listener: None, path: PathBuf::new(), clients: Vec::new() }
    }

    /// What to wait for: the listener to become readable, and clients to become readable or writable.
    pub(crate) fn waits_for(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        let clients = self.clients.iter().map(|client| (client.stream.as_fd(), !client.output.is_empty()));
        self.listener.iter().map(|listener| (listener.as_fd(), false)).chain(clients)
    }

    /// Takes and gives what is possible now. `answer` is called once for each whole request.
    pub(crate) fn serve(&mut self, now: Instant, mut answer: impl FnMut(Request) -> Reply) {
        self.accept(now);
        self.clients.retain_mut(|client| {
            now.duration_since(client.since) < PATIENCE && client.advance(&mut answer).unwrap_or(false)
        });
    }

    fn accept(&mut self, now: Instant) {
        let Some(listener) = &self.listener else { return };
        // A bound on the loop too: a flood of connections must not hold the supervisor.
        for _ in 0..MAX_CLIENTS {
            let Ok((stream, _)) = listener.accept() else { return };
            if self.clients.len() < MAX_CLIENTS && stream.set_nonblocking(true).is_ok() {
                let (input, output) = (Vec::new(), Vec::new());
                self.clients.push(Client { stream, since: now, input, output, sent: 0 });
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.listener.is_some() {
            // A socket that stays is replaced by the next instance of this name.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Client {
    /// Whether the connection goes on.
    fn advance(&mut self, answer: &mut impl FnMut(Request) -> Reply) -> io::Result<bool> {
        if self.output.is_empty() && !self.take(answer)? {
            return Ok(false);
        }
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => return Ok(false),
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.output.is_empty())
    }

    /// Reads on; with a whole line the answer stands in `output`. False when the client is gone or babbles.
    fn take(&mut self, answer: &mut impl FnMut(Request) -> Reply) -> io::Result<bool> {
        let mut buffer = [0; 1024];
        let ended = loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => break true,
                Ok(n) => self.input.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if self.input.len() > MAX_REQUEST {
                return Ok(false);
            }
        };
        let Some(end) = self.input.iter().position(|byte| *byte == b'\n') else { return Ok(!ended) };
        let reply = match serde_json::from_slice::<Request>(&self.input[..end]) {
            Ok(request) => answer(request),
            Err(error) => {
                Reply::Error(format!("this is no request ({error}). Ask for example {{\"ask\":\"stats\"}}"))
            }
        };
        self.output = serde_json::to_vec(&reply)
            .unwrap_or_else(|_| b"{\"error\":\"the answer cannot be written\"}".to_vec());
        self.output.push(b'\n');
        Ok(true)
    }
}

/// Asks the instance of this name.
///
/// # Errors
/// A sentence: no such instance, no permission, no answer, or the instance's own refusal.
pub(crate) fn ask(name: &str, request: Request) -> anyhow::Result<Value> {
    let Some(path) = place::socket_of(name) else { anyhow::bail!("{}", nobody(name)) };
    let shown = path.display();
    let mut stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            anyhow::bail!(
                "the instance {name} belongs to another user ({shown}: permission denied). Run this as that user, or with sudo"
            )
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => anyhow::bail!("{}", nobody(name)),
        Err(error) => anyhow::bail!(
            "asking the instance {name} at {shown} failed ({}). Is it running?",
            words::of_io(&error)
        ),
    };
    let talk = |stream: &mut UnixStream| -> io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut reply = Vec::new();
        stream.take(MAX_REPLY).read_to_end(&mut reply)?;
        Ok(reply)
    };
    let reply = talk(&mut stream).map_err(|error| {
        anyhow::anyhow!(
            "the instance {name} at {shown} does not answer ({}). Is it stopped or very busy? Try again",
            words::of_io(&error)
        )
    })?;
    if !reply.ends_with(b"\n") {
        anyhow::bail!(
            "the instance {name} at {shown} hung up before it had answered: it has just ended, or was too busy. Try again"
        );
    }
    match serde_json::from_slice(&reply) {
        Ok(Reply::Ok(value)) => Ok(value),
        Ok(Reply::Error(sentence)) => anyhow::bail!("{sentence}"),
        Err(_) => anyhow::bail!(
            "what listens at {shown} is another version of tcptwin. Use the program that it was started with"
        ),
    }
}

fn nobody(name: &str) -> String {
    let others = place::instances();
    let others: Vec<&str> = others.iter().map(String::as_str).filter(|other| *other != name).collect();
    match others.as_slice() {
        [] => format!(
            "no instance named {name} runs here. Start one with `tcptwin run`; as another user, look with sudo"
        ),
        _ => format!("no instance named {name} runs here. There is --name {}", others.join(", --name ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader};

    struct Room {
        dir: PathBuf,
        server: Server,
        now: Instant,
    }

    impl Room {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("tcptwin-control-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Self { server: Server::bind(&dir, "a").unwrap(), dir, now: Instant::now() }
        }

        fn connect(&self) -> UnixStream {
            let stream = UnixStream::connect(self.dir.join("a.sock")).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        }

        fn serve(&mut self) {
            self.server.serve(self.now, |request| Reply::Ok(serde_json::to_value(request).unwrap()));
        }

        fn line_for(&mut self, request: &[u8]) -> String {
            let mut stream = self.connect();
            stream.write_all(request).unwrap();
            self.serve();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap();
            line
        }
    }

    impl Drop for Room {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    #[test]
    fn a_request_is_answered_in_one_line() {
        let mut room = Room::new("answer");
        assert_eq!(room.line_for(b"{\"ask\":\"stats\"}\n"), "{\"ok\":{\"ask\":\"stats\"}}\n");
        assert_eq!(
            room.line_for(b"{\"ask\":\"percent\",\"ppm\":5}\n"),
            "{\"ok\":{\"ask\":\"percent\",\"ppm\":5}}\n"
        );
        assert!(room.server.clients.is_empty(), "the connection ends with the answer");
    }

    #[test]
    fn garbage_is_told_so_and_babble_is_cut() {
        let mut room = Room::new("garbage");
        assert!(room.line_for(b"GET / HTTP/1.1\r\n").contains("this is no request"));
        assert!(room.line_for(b"{\"ask\":\"percent\",\"ppm\":-5}\n").contains("this is no request"));
        assert_eq!(room.line_for(&[b'x'; MAX_REQUEST + 1]), "");
        assert!(room.server.clients.is_empty());
    }

    #[test]
    fn a_request_in_pieces_is_put_together() {
        let mut room = Room::new("pieces");
        let mut stream = room.connect();
        for piece in [&b"{\"ask\":"[..], b"\"pau", b"se\"}\n"] {
            stream.write_all(piece).unwrap();
            room.serve();
        }
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        assert_eq!(line, "{\"ok\":{\"ask\":\"pause\"}}\n");
    }

    #[test]
    fn silent_clients_neither_block_others_nor_stay() {
        let mut room = Room::new("silent");
        let silent: Vec<UnixStream> = (0..MAX_CLIENTS - 1).map(|_| room.connect()).collect();
        room.serve();
        assert_eq!(room.line_for(b"{\"ask\":\"stats\"}\n"), "{\"ok\":{\"ask\":\"stats\"}}\n");
        room.now += PATIENCE;
        room.serve();
        assert!(room.server.clients.is_empty());
        drop(silent);
    }

    #[test]
    fn a_client_that_does_not_read_gets_its_answer_later() {
        let mut room = Room::new("slow");
        let large = "x".repeat(4 << 20);
        let mut stream = room.connect();
        stream.write_all(b"{\"ask\":\"stats\"}\n").unwrap();
        let answer = Reply::Ok(Value::String(large.clone()));
        room.server.serve(room.now, |_| answer.clone());
        assert_eq!(room.server.clients.len(), 1);
        let reader = std::thread::spawn(move || {
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap();
            line.len()
        });
        while !room.server.clients.is_empty() {
            room.serve();
            std::thread::yield_now();
        }
        assert!(reader.join().unwrap() > large.len());
    }

    #[test]
    fn the_socket_is_private_and_goes_with_the_server() {
        let room = Room::new("private");
        let path = room.dir.join("a.sock");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Server::bind(&room.dir, "a").unwrap();
        drop(again);
        assert!(!path.exists());
    }
}
