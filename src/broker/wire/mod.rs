//! Reads the broker's frames before the AMQP library does, so that no message's properties can end
//! a connection.
//!
//! ```text
//! socket (plain or TLS) ▶ Wire ▶ lapin
//! ```
//!
//! A producer can publish a message that the broker delivers and the library cannot read. The
//! library then closes the connection with all jobs on it. This repeats without end, because the
//! message stays first in its queue. [`Wire`] checks each frame and makes such a message readable.
//! `accept` then rejects the job and says why. Message bodies pass unchanged; large ones are not
//! copied.

mod content_header;
mod method;

use std::{
    io::{self, IoSlice, Read, Write},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use async_compat::Compat;
use async_rs::{Runtime, Tokio, traits::Reactor, util::RuntimeParts};
use futures_util::{
    Stream,
    io::{AsyncRead, AsyncWrite},
};
use lapin::AsyncTcpStream;
use tokio::net::TcpStream;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
/// Type, channel and size come before a frame's payload; an end byte follows it.
const FRAME_HEAD: usize = 7;
const FRAME_TAIL: usize = 1;
/// The limit until the broker announces its own. lapin asks for as much as the broker allows, which
/// is this by default.
const DEFAULT_FRAME_MAX: usize = 131_072;
/// A larger method or header frame is an error of the connection. The broker does not split header
/// frames: an AMQP 1.0 client of RabbitMQ 4.x can make one as large as a message may be, 16 MiB by
/// default.
const MAX_READ_WHOLE: usize = 64 * 1024 * 1024;
/// The capacity that an empty buffer keeps.
const KEPT_BYTES: usize = 1024 * 1024;
const READ_AT_ONCE: usize = 64 * 1024;

/// The socket of a connection, with or without TLS.
pub type Transport = AsyncTcpStream<Compat<TcpStream>>;

/// Tokio, for a library that reads from a [`Wire`].
pub type WireRuntime = Runtime<RuntimeParts<Tokio, WireReactor>>;

/// Must be called within the Tokio runtime.
pub fn runtime() -> WireRuntime {
    Runtime::new(RuntimeParts::new(Tokio::current(), WireReactor(Tokio::current())))
}

/// A connection whose frames are all readable.
pub struct Wire<S> {
    socket: S,
    /// The largest frame that the library takes.
    frame_max: usize,
    /// The limit that this side asks for, if it asks for one.
    asked_for: Option<usize>,
    /// Space for bytes read. Only the bytes up to `end` come from the socket.
    buffer: Vec<u8>,
    /// Bytes before this one have been passed to the reader.
    start: usize,
    /// Bytes before this one have been checked, and may be passed to the reader.
    checked: usize,
    end: usize,
    /// How many of the next bytes need no check.
    passing: usize,
}

impl<S> Wire<S> {
    /// `frame_max` is the limit that this side asks for. With `None` or 0, the broker's limit
    /// applies.
    pub fn new(socket: S, frame_max: Option<u32>) -> Self {
        let asked_for =
            frame_max.filter(|frame_max| *frame_max > 0).map(|frame_max| frame_max as usize);
        let frame_max = asked_for.unwrap_or(DEFAULT_FRAME_MAX);
        Self {
            socket,
            frame_max,
            asked_for,
            buffer: Vec::new(),
            start: 0,
            checked: 0,
            end: 0,
            passing: 0,
        }
    }

    fn make_room(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.checked, self.end, self.start) =
                (self.checked - self.start, self.end - self.start, 0);
        }
        if self.end == 0 && self.buffer.len() > KEPT_BYTES {
            self.buffer = Vec::new();
        }
        if self.buffer.len() < self.end + READ_AT_ONCE {
            self.buffer.resize(self.end + READ_AT_ONCE, 0);
        }
    }

    /// Checks the bytes that have been read, frame by frame.
    fn check(&mut self) -> io::Result<()> {
        loop {
            let passes = self.passing.min(self.end - self.checked);
            self.passing -= passes;
            self.checked += passes;
            let unchecked = &self.buffer[self.checked..self.end];
            let Some((&[kind, _, _, size @ ..], rest)) =
                unchecked.split_first_chunk::<FRAME_HEAD>()
            else {
                return Ok(());
            };
            let size = u32::from_be_bytes(size) as usize;
            if !matches!(kind, METHOD | HEADER) {
                self.passing = FRAME_HEAD + size + FRAME_TAIL;
            } else if size > MAX_READ_WHOLE {
                let problem = format!(
                    "the broker sent a frame of {size} bytes; at most {MAX_READ_WHOLE} are read"
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            } else if rest.len() < size + FRAME_TAIL {
                return Ok(());
            } else {
                self.check_frame(kind, size);
            }
        }
    }

    /// Checks one whole frame, and replaces its payload if the library could not read it.
    fn check_frame(&mut self, kind: u8, size: usize) {
        let begin = self.checked + FRAME_HEAD;
        let payload = &mut self.buffer[begin..begin + size];
        let mut new_size = size;
        if kind == METHOD {
            method::make_readable(payload);
            if let Some(frame_max) = method::tuned_frame_max(payload) {
                self.frame_max =
                    self.asked_for.map_or(frame_max, |asked_for| asked_for.min(frame_max));
            }
        } else if let Some(readable) = content_header::readable(
            payload,
            self.frame_max.saturating_sub(FRAME_HEAD + FRAME_TAIL),
        ) {
            new_size = readable.len();
            self.buffer.splice(begin..begin + size, readable);
            self.buffer[begin - size_of::<u32>()..begin]
                .copy_from_slice(&(new_size as u32).to_be_bytes());
            self.end = self.end + new_size - size;
        }
        self.checked = begin + new_size + FRAME_TAIL;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let wire = &mut *self;
        loop {
            let checked = &wire.buffer[wire.start..wire.checked];
            if !checked.is_empty() || into.is_empty() {
                let count = checked.len().min(into.len());
                into[..count].copy_from_slice(&checked[..count]);
                wire.start += count;
                return Poll::Ready(Ok(count));
            }
            if wire.passing > 0 {
                // The buffer is empty. The rest of a large body goes from the socket straight to
                // the reader.
                let most = wire.passing.min(into.len());
                let count =
                    ready!(Pin::new(&mut wire.socket).poll_read(context, &mut into[..most]))?;
                wire.passing -= count;
                return Poll::Ready(Ok(count));
            }
            wire.make_room();
            let count = ready!(
                Pin::new(&mut wire.socket).poll_read(context, &mut wire.buffer[wire.end..])
            )?;
            if count == 0 {
                return Poll::Ready(Ok(0));
            }
            wire.end += count;
            wire.check()?;
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(context)
    }
}

/// Tokio's reactor, whose streams are [`Wire`]s.
#[derive(Debug, Clone)]
pub struct WireReactor(Tokio);

impl Reactor for WireReactor {
    type TcpStream = Wire<Transport>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    /// The library never calls this: [`connection`](super::connection) opens the sockets.
    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move { Ok(Wire::new(AsyncTcpStream::Plain(connecting.await?), None)) }
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;

/// Returns what the library reads of a message with these properties and one more header, as sent
/// on the wire. `None` if it cannot read the message. `looked_at` says whether the message passes a
/// [`Wire`].
#[cfg(test)]
pub fn as_read(
    properties: &lapin::BasicProperties,
    header: &[u8],
    looked_at: bool,
) -> Option<lapin::BasicProperties> {
    tests::as_read(properties, header, looked_at)
}
