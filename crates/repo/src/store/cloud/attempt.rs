//! Trying again: which failures pass by themselves, how long to wait, and when to give up.
//!
//! Invariant: an operation ends within its total time, whatever the other side does. Each try has a limit of its own,
//! so that a connection that hangs is given up while there is time for another.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use object_store::aws::AwsCredentialProvider;
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use tokio::runtime::{Builder, Runtime};

use super::control::Retain;
use super::error;
use crate::store::StoreError;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A try may take longer by what it has to carry at this rate, bytes per second.
const SLOWEST_RATE: u64 = 128 * 1024;
/// The total, in limits of one try.
const TRIES_IN_TOTAL: u32 = 4;

tokio::task_local! {
    static SEEN: Cell<Option<u16>>;
}

/// How operations on a store are run.
pub struct Attempts {
    runtime: Runtime,
    /// Of one try that carries nothing.
    limit: Duration,
}

/// Why an operation was given up.
#[derive(Debug)]
pub struct Failed {
    pub tries: u32,
    /// The name is taken, or said to be.
    pub taken: bool,
    pub why: Why,
}

#[derive(Debug)]
pub enum Why {
    Store { error: object_store::Error, status: Option<u16> },
    Timeout(Duration),
}

impl Attempts {
    pub fn new(limit: Duration) -> Result<Self, StoreError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("store")
            .enable_all()
            .build()
            .map_err(|e| StoreError::io("start", "the network threads", e))?;
        Ok(Attempts { runtime, limit })
    }

    pub fn limit_for(&self, bytes: usize) -> Duration {
        self.limit + Duration::from_secs(bytes as u64 / SLOWEST_RATE)
    }

    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Runs an operation that carries so many bytes until it succeeds, fails for good, or the total time is over.
    pub fn run<T, F, Fut>(&self, bytes: usize, operation: F) -> Result<T, Failed>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = object_store::Result<T>>,
    {
        self.runtime.block_on(run(self.limit_for(bytes), operation))
    }
}

/// `limit` is that of one try.
pub async fn run<T, F, Fut>(limit: Duration, operation: F) -> Result<T, Failed>
where
    F: Fn() -> Fut,
    Fut: Future<Output = object_store::Result<T>>,
{
    let began = Instant::now();
    let total = limit.saturating_mul(TRIES_IN_TOTAL);
    let mut pause = FIRST_PAUSE;
    for tries in 1.. {
        let left = total.saturating_sub(began.elapsed());
        let one = SEEN.scope(Cell::new(None), async {
            let outcome = tokio::time::timeout(limit.min(left), operation()).await;
            (outcome, SEEN.with(Cell::get))
        });
        let (why, again) = match one.await {
            (Ok(Ok(value)), _) => return Ok(value),
            (Ok(Err(error)), status) => {
                let again = error::may_pass(&error, status);
                (Why::Store { error, status }, again)
            }
            (Err(_), _) => (Why::Timeout(began.elapsed()), true),
        };
        if !again || began.elapsed() + pause >= total {
            return Err(Failed { tries, taken: why.is_taken(), why });
        }
        tracing::info!(%why, tries, pause_ms = pause.as_millis() as u64, "the store is asked again");
        tokio::time::sleep(jittered(pause)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    unreachable!("the loop ends by the total time")
}

/// Between half and the whole, so that those who failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    pause / 2 + pause.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
}

impl Why {
    fn is_taken(&self) -> bool {
        matches!(self, Why::Store { error: object_store::Error::AlreadyExists { .. }, .. })
            || matches!(self, Why::Store { error: object_store::Error::Precondition { .. }, .. })
    }
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Why::Store { error, status } => f.write_str(&error::message(error, *status)),
            Why::Timeout(after) => write!(f, "no answer within {} s", after.as_secs()),
        }
    }
}

impl Failed {
    /// The range lies beyond the end of the object.
    pub fn is_range(&self) -> bool {
        matches!(&self.why, Why::Store { error, status } if error::is_range(error, *status))
    }

    pub fn about(self, operation: &'static str, object: impl ToString) -> StoreError {
        error::store_error(self.why, operation, object.to_string(), error::Of::Object)
    }

    /// Of a listing, "not found" means that the bucket is not there.
    pub fn about_list(self, prefix: impl ToString) -> StoreError {
        error::store_error(self.why, "list", prefix.to_string(), error::Of::Listing)
    }
}

impl From<Failed> for io::Error {
    fn from(failed: Failed) -> Self {
        io::Error::other(failed.why.to_string())
    }
}

/// The library's client, with the status of the last answer noted for who retries: its errors do not tell. It also adds
/// to requests what the library cannot say, see `Retain`.
#[derive(Clone, Debug, Default)]
pub struct Watching {
    /// Known when the library has made its client.
    credentials: Arc<OnceLock<AwsCredentialProvider>>,
}

impl Watching {
    pub fn sign_with(&self, credentials: &AwsCredentialProvider) {
        // Called once for each client.
        let _ = self.credentials.set(credentials.clone());
    }
}

impl HttpConnector for Watching {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Watched(ReqwestConnector::default().connect(options)?, self.credentials.clone())))
    }
}

#[derive(Debug)]
struct Watched(HttpClient, Arc<OnceLock<AwsCredentialProvider>>);

impl Watched {
    async fn complete(&self, request: &mut HttpRequest) -> Result<(), HttpError> {
        let Some(retain) = request.extensions().get::<Retain>().copied() else { return Ok(()) };
        let wrong = |e| HttpError::new(HttpErrorKind::Request, e);
        let provider = self.1.get().expect("only S3 objects are locked, and its client is complete");
        let credential = provider.get_credential().await.map_err(wrong)?;
        retain.apply(request, &credential)
    }
}

impl HttpService for Watched {
    fn call<'a, 'b>(
        &'a self,
        mut request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            self.complete(&mut request).await?;
            let outcome = self.0.execute(request).await;
            let status = outcome.as_ref().ok().map(|r| r.status().as_u16());
            // Outside of an attempt nobody asks.
            let _ = SEEN.try_with(|seen| seen.set(status));
            outcome
        })
    }
}
