//! What a call does while a node is silent: it looks whether another one leads by now, and whether the node or only the
//! connection is at fault.
//!
//! After a cut of the network the kernels at both ends of a connection repeat what was lost at growing intervals: it stays
//! silent for up to as long again, while a new one is answered at once.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use taskmaster_protocol::body::Empty;
use taskmaster_protocol::{Header, Operation};
use tokio::time::sleep;

use super::{Cluster, Place, Target};
use crate::wire::Connection;

/// By how much the answer on a new connection may be ahead of the one on the old.
const GRACE: Duration = Duration::from_millis(50);

impl Cluster {
    /// Ends when the target is known to be at another place than this one.
    pub(super) async fn moved(&self, target: Target, place: Option<&Place>) {
        let mut topology = self.follow();
        while !self.is_elsewhere(target, place) {
            if topology.changed().await.is_err() {
                return;
            }
        }
    }

    /// Looks at the map now and then.
    pub(super) async fn doubt(&self, suspect: Duration) -> Infallible {
        loop {
            // That nobody answers is no news here.
            drop(self.learn_if_older(suspect).await);
            sleep(suspect).await;
        }
    }

    /// Now and then asks the node something simple, on the connection in use and on a new one. If only the new one is
    /// answered it takes the place of the other, which ends: whoever waits on it tries again.
    pub(super) async fn ask_again(
        &self,
        place: &Place,
        used: &OnceLock<Arc<Connection>>,
        mut pause: Duration,
    ) -> Infallible {
        loop {
            sleep(pause).await;
            pause *= 2;
            let Some(connection) = used.get() else { continue };
            // One call does it for all that wait on this connection.
            let link = place.node.link(place.shard);
            let Ok(_opening) = link.opening.try_lock() else { continue };
            let heard = connection.heard();
            let nothing = Empty::default();
            let old = connection.request(Header::request(Operation::Ping, 0, None), &nothing);
            let new = async {
                let opened = self.open(place).await;
                sleep(GRACE).await;
                opened
            };
            tokio::select! {
                // Even that it is lost is an answer.
                _ = old => {}
                opened = new => if let Ok((fresh, _)) = opened && connection.heard() == heard {
                    link.set(Arc::new(fresh));
                    connection.end("it was silent while the node answered on another one");
                }
            }
        }
    }
}
