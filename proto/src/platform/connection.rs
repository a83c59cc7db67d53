//! A simulated connection, as tonic's two ends want it.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::{Uri, server::Connected};
use tower_service::Service;

use super::World;

/// Bytes in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// One end of a simulated connection.
pub struct Connection(Box<dyn Duplex>);

impl Connection {
    /// Made of bytes in both directions.
    pub fn new(duplex: impl Duplex + 'static) -> Self {
        Self(Box::new(duplex))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A connection as hyper reads and writes it.
pub(super) type Hyper = TokioIo<Connection>;

/// Dials in a world.
pub(super) struct Dial(pub(super) Arc<dyn World>);

impl Service<Uri> for Dial {
    type Response = Hyper;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Hyper>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let place = uri.host().zip(uri.port_u16());
        let dialled = place.map(|(host, port)| self.0.dial(host, port));
        Box::pin(async move {
            let dialled = dialled.ok_or(io::ErrorKind::InvalidInput)?;
            Ok(TokioIo::new(dialled.await?))
        })
    }
}
