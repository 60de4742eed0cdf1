//! A real redis-server without persistence, and a client whose lists prove that commands arrived once and in order.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::namespace::Namespace;
use crate::network::Host;
use crate::real::tool;
use crate::scratch::Scratch;
use crate::wait;

/// A running redis-server.
pub struct Redis {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
    _scratch: Scratch,
}

impl Redis {
    /// Starts a server on a host's IPv4 address.
    pub fn start(host: &Host, port: u16) -> anyhow::Result<Self> {
        let program = tool::find("redis-server")?;
        let scratch = Scratch::new("redis")?;
        let address = SocketAddr::new(host.v4(), port);
        let mut command = Command::new(program);
        command
            .args(["--port", &port.to_string(), "--bind", &host.v4().to_string(), "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no", "--protected-mode", "no"])
            .args(["--tcp-keepalive", "0", "--dir"])
            .arg(scratch.path())
            .stdin(Stdio::null())
            .stdout(File::create(scratch.file("log"))?)
            .stderr(Stdio::null());
        let child = host.ns.spawn(command).context("starting redis-server")?;
        let mut redis = Self { address, child, _scratch: scratch };
        let ready = wait::until(&format!("redis-server at {address}"), Duration::from_secs(10), || {
            redis.ask(&host.ns, &["PING"]).is_ok_and(|a| a == "PONG")
        });
        if let Err(error) = ready {
            redis.end();
            return Err(error);
        }
        Ok(redis)
    }

    /// Sends one command from the host itself, over loopback, so that it is not part of the traffic between hosts.
    pub fn ask(&self, host: &Namespace, command: &[&str]) -> anyhow::Result<String> {
        let address = SocketAddr::new([127, 0, 0, 1].into(), self.address.port());
        let request = encode(command);
        Ok(host.enter(move || -> io::Result<String> {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(&request)?;
            read_answer(&mut BufReader::new(stream))
        })?)
    }

    /// Calls of one command so far (`INFO commandstats`).
    pub fn calls(&self, host: &Namespace, command: &str) -> anyhow::Result<u64> {
        let info = self.ask(host, &["INFO", "commandstats"])?;
        let key = format!("cmdstat_{command}:calls=");
        let line = info.lines().find_map(|l| l.strip_prefix(&key));
        Ok(line.and_then(|l| l.split(',').next()).map_or(Ok(0), str::parse)?)
    }

    /// Number of keys.
    pub fn keys(&self, host: &Namespace) -> anyhow::Result<u64> {
        Ok(self.ask(host, &["DBSIZE"])?.parse()?)
    }

    /// The list that connection `n` of a [`RedisLoad`] wrote, in order.
    pub fn list(&self, host: &Namespace, n: usize) -> anyhow::Result<Vec<u64>> {
        let text = self.ask(host, &["LRANGE", &list_key(n), "0", "-1"])?;
        text.lines().map(|l| l.parse().with_context(|| format!("list {n} holds {l}"))).collect()
    }

    fn end(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.end();
    }
}

/// Connections that each append numbers to a list of their own: the list shows every loss, repeat and change of order.
#[derive(Clone, Copy, Debug)]
pub struct RedisLoad {
    /// The server.
    pub to: SocketAddr,
    /// Connections, each in a thread.
    pub connections: usize,
    /// Commands of each.
    pub commands: u64,
    /// Commands sent before their answers are read; 1 is closed loop.
    pub pipeline: u64,
    /// Bytes of a value that is set beside each number; 0 sets none.
    pub value_bytes: usize,
}

impl RedisLoad {
    /// Sends everything and reads every answer.
    pub fn run(self, ns: &Namespace) -> anyhow::Result<()> {
        let threads: Vec<_> = (0..self.connections)
            .map(|n| ns.thread(&format!("redis-{n}"), move || self.connection(n)))
            .collect::<io::Result<_>>()?;
        for thread in threads {
            thread.join().map_err(|_| io::Error::other("a redis client panicked"))??;
        }
        Ok(())
    }

    fn connection(self, n: usize) -> anyhow::Result<()> {
        let stream = TcpStream::connect(self.to)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut writer = stream.try_clone()?;
        let mut reader = BufReader::new(stream);
        let (key, value) = (list_key(n), "v".repeat(self.value_bytes));
        let mut next = 0;
        while next < self.commands {
            let last = (next + self.pipeline.max(1)).min(self.commands);
            let mut batch = Vec::new();
            for number in next..last {
                if self.value_bytes > 0 {
                    batch.extend(encode(&["SET", &format!("value:{n}:{number}"), &value]));
                }
                batch.extend(encode(&["RPUSH", &key, &number.to_string()]));
            }
            writer.write_all(&batch)?;
            for number in next..last {
                if self.value_bytes > 0 {
                    ensure!(read_answer(&mut reader)? == "OK", "SET was refused");
                }
                let length = read_answer(&mut reader)?;
                if length != (number + 1).to_string() {
                    bail!("list {n} has length {length} after {} commands", number + 1);
                }
            }
            next = last;
        }
        Ok(())
    }
}

fn list_key(n: usize) -> String {
    format!("list:{n}")
}

/// A command in the redis protocol (RESP2).
fn encode(command: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for word in command {
        bytes.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
    }
    bytes
}

/// One answer as text; the elements of a list on a line each.
fn read_answer(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let line = line.trim_end();
    let (kind, rest) = line.split_at_checked(1).ok_or(io::ErrorKind::InvalidData)?;
    let number = || rest.parse::<i64>().map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
    match kind {
        "+" | ":" => Ok(rest.to_owned()),
        "-" => Err(io::Error::other(format!("redis says {rest}"))),
        "$" => {
            let Ok(length) = usize::try_from(number()?) else { return Ok(String::new()) };
            let mut value = vec![0; length + 2];
            reader.read_exact(&mut value)?;
            value.truncate(length);
            String::from_utf8(value).map_err(|_| io::ErrorKind::InvalidData.into())
        }
        "*" => {
            let mut elements = Vec::new();
            for _ in 0..number()?.max(0) {
                elements.push(read_answer(reader)?);
            }
            Ok(elements.join("\n"))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_answers_have_their_shape() {
        assert_eq!(encode(&["GET", "a"]), b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n");
        let read = |text: &str| read_answer(&mut text.as_bytes());
        assert_eq!(read("+PONG\r\n").unwrap(), "PONG");
        assert_eq!(read("$5\r\na\r\nbc\r\n").unwrap(), "a\r\nbc");
        assert_eq!(read("*2\r\n:1\r\n$1\r\nx\r\n").unwrap(), "1\nx");
        assert_eq!(read("$-1\r\n").unwrap(), "");
        assert!(read("-ERR no\r\n").is_err());
        assert!(read("").is_err());
    }
}
