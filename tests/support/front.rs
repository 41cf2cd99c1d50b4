//! What stands between linesight and a server in the tests: TLS, a proxy, a link that is cut.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use uuid::Uuid;

/// An authority of its own, with what it signs.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// When a certificate is valid.
#[derive(Clone, Copy)]
pub enum Valid {
    Now,
    Past,
    Future,
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, Uuid::now_v7().to_string());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its own certificate, as a file.
    pub fn write(&self, file: &Path) -> PathBuf {
        std::fs::write(file, self.0.pem()).unwrap();
        file.to_owned()
    }

    fn sign(&self, names: &[&str], use_: ExtendedKeyUsagePurpose, valid: Valid) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
        params.extended_key_usages = vec![use_];
        let (from, to) = match valid {
            Valid::Now => (1990, 4000),
            Valid::Past => (1990, 1991),
            Valid::Future => (3990, 4000),
        };
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap(), key)
    }

    /// A server's configuration; `clients`: the authority whose certificates its clients must have.
    pub fn server(&self, names: &[&str], valid: Valid, clients: Option<&Authority>) -> Arc<ServerConfig> {
        let (certificate, key) = self.sign(names, ExtendedKeyUsagePurpose::ServerAuth, valid);
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = match clients {
            None => builder.unwrap().with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from(authority.0.der().to_vec())).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.unwrap().with_client_cert_verifier(verifier.unwrap())
            }
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Arc::new(builder.with_single_cert(vec![certificate.der().clone()], key).unwrap())
    }

    /// Writes a client's certificate and key.
    pub fn client(&self, cert: &Path, key: &Path) {
        let (certificate, secret) = self.sign(&["line-1"], ExtendedKeyUsagePurpose::ClientAuth, Valid::Now);
        std::fs::write(cert, certificate.pem()).unwrap();
        std::fs::write(key, secret.serialize_pem()).unwrap();
    }
}

#[derive(Default)]
struct State {
    /// How connections are encrypted; none: not.
    tls: Mutex<Option<Arc<ServerConfig>>>,
    /// Bytes from the client after which a connection is cut; 0: never.
    cut: AtomicU64,
    connections: AtomicUsize,
    /// Bytes from the client so far, with the time when they came.
    came: Mutex<Vec<(Instant, u64)>>,
}

/// Hands connections on to a server, decrypted.
pub struct Front {
    pub address: SocketAddr,
    state: Arc<State>,
    runtime: Option<Runtime>,
}

impl Front {
    pub fn start(upstream: SocketAddr) -> Front {
        Self::new(upstream, false)
    }

    /// A proxy that opens a tunnel to `upstream`, whatever it is asked for.
    pub fn tunnel(upstream: SocketAddr) -> Front {
        Self::new(upstream, true)
    }

    fn new(upstream: SocketAddr, tunnel: bool) -> Front {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = state.clone();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((client, _)) = listener.accept().await {
                let state = shared.clone();
                state.connections.fetch_add(1, Relaxed);
                // a client that leaves in the middle is part of the game
                tokio::spawn(async move { serve(client, upstream, tunnel, &state).await.ok() });
            }
        });
        Front { address, state, runtime: Some(runtime) }
    }

    pub fn encrypt(&self, tls: Arc<ServerConfig>) {
        *self.state.tls.lock().unwrap() = Some(tls);
    }

    /// Cuts each connection after so many bytes from the client; 0: never.
    pub fn cut(&self, after: u64) {
        self.state.cut.store(after, Relaxed);
    }

    pub fn connections(&self) -> usize {
        self.state.connections.load(Relaxed)
    }

    pub fn came(&self) -> Vec<(Instant, u64)> {
        self.state.came.lock().unwrap().clone()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_timeout(Duration::from_secs(1));
    }
}

async fn serve(mut client: TcpStream, upstream: SocketAddr, tunnel: bool, state: &State) -> std::io::Result<()> {
    if tunnel {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await?);
        }
        assert!(head.starts_with(b"CONNECT "), "{}", String::from_utf8_lossy(&head));
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    }
    let tls = state.tls.lock().unwrap().clone();
    match tls {
        Some(tls) => relay(TlsAcceptor::from(tls).accept(client).await?, upstream, state).await,
        None => relay(client, upstream, state).await,
    }
}

async fn relay(client: impl AsyncRead + AsyncWrite, upstream: SocketAddr, state: &State) -> std::io::Result<()> {
    let (mut from, mut to) = tokio::io::split(client);
    let (mut answers, mut server) = TcpStream::connect(upstream).await?.into_split();
    let up = async {
        let (mut buffer, mut total) = ([0; 4096], 0);
        loop {
            let n = from.read(&mut buffer).await?;
            if n == 0 {
                return std::io::Result::Ok(());
            }
            total += n as u64;
            {
                let mut came = state.came.lock().unwrap();
                let before = came.last().map_or(0, |(_, bytes)| *bytes);
                came.push((Instant::now(), before + n as u64));
            }
            let cut = state.cut.load(Relaxed);
            if cut > 0 && total >= cut {
                return Ok(());
            }
            server.write_all(&buffer[..n]).await?;
        }
    };
    tokio::select! {
        done = up => done,
        done = tokio::io::copy(&mut answers, &mut to) => done.map(drop),
    }
}
