//! An S3-compatible server that keeps its objects in a folder.

use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

pub const BUCKET: &str = "anomalies";
pub const KEY_ID: &str = "line-1";
pub const SECRET: &str = "very/s3cret";

pub struct Store {
    pub address: SocketAddr,
    folder: PathBuf,
    runtime: Option<Runtime>,
}

impl Store {
    /// With the bucket in it.
    pub fn start(folder: &Path) -> Store {
        std::fs::create_dir_all(folder.join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(FileSystem::new(folder).unwrap());
        service.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        let service = service.build();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let http = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            while let Ok((socket, _)) = listener.accept().await {
                let served = http.serve_connection(hyper_util::rt::TokioIo::new(socket), service.clone());
                tokio::spawn(served.into_owned());
            }
        });
        Store { address, folder: folder.into(), runtime: Some(runtime) }
    }

    /// Where its objects lie, each under its key.
    pub fn objects(&self) -> PathBuf {
        self.folder.join(BUCKET)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_timeout(Duration::from_secs(1));
    }
}
