//! Keeps a claim alive while a long job runs, and tells the job when it was lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use pgark_repo::RepoError;
use pgark_repo::catalog::{CLAIM_RENEW_SECONDS, Claim};

use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

pub struct KeptClaim {
    claim: Claim,
    lost: Arc<AtomicBool>,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl KeptClaim {
    pub fn new(claim: Claim, ctx: &Ctx) -> Self {
        let lost = Arc::new(AtomicBool::new(false));
        let (end, ended) = channel::<()>();
        let thread = std::thread::spawn({
            let (claim, lost, ctx) = (claim.clone(), lost.clone(), ctx.clone());
            move || {
                let pause = Duration::from_secs(CLAIM_RENEW_SECONDS);
                while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                    match claim.renew(ctx.now()) {
                        Ok(()) => {}
                        Err(RepoError::Fenced { .. }) => {
                            lost.store(true, Ordering::Relaxed);
                            return;
                        }
                        // Not lost yet: the next renewal may succeed before the claim runs out.
                        Err(e) => tracing::warn!(%e, "the claim on the cluster could not be renewed"),
                    }
                }
            }
        });
        KeptClaim { claim, lost, end: Some(end), thread: Some(thread) }
    }

    /// An error when somebody else took over.
    pub fn check(&self) -> Result<()> {
        if self.lost.load(Ordering::Relaxed) {
            return Err(EngineError::Repo(RepoError::Fenced {
                what: "the cluster".into(),
                why: "another process took over; this one was thought dead".into(),
            }));
        }
        Ok(self.claim.check()?)
    }
}

impl Drop for KeptClaim {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that renews the claim panicked");
        }
    }
}
