//! Events between the engine and the thread that sends them: batches go out in slices between other work, answers come back.

use std::rc::Rc;

use futures_lite::future::or;
use glommio::timer::Timer;
use taskmaster_connect::kafka::events::Given;
use taskmaster_engine::Input;
use taskmaster_net::wake::Bell;

use super::ShardLoop;
use super::checkpoints::PAUSE;
use super::wake::Wake;
use crate::events::Port;

/// A shard's part in events.
pub(super) struct Events {
    pub(super) port: Port,
    /// Rung by answers.
    answered: Bell,
}

impl Events {
    pub(super) fn new(port: Port) -> Self {
        Self { port, answered: Bell::default() }
    }
}

impl ShardLoop {
    /// Starts what sends and receives, where events go out.
    pub(super) fn start_events(self: &Rc<Self>, wake: Option<std::os::unix::net::UnixStream>) {
        if let (Some(sender), Some(wake)) = (&self.events, wake) {
            glommio::spawn_local(Rc::clone(self).events_task(Rc::clone(sender))).detach();
            glommio::spawn_local(Rc::clone(self).events_answers(Rc::clone(sender), wake)).detach();
        }
    }

    /// Sends events at every interval, and after answers what came meanwhile: a busy topic has large batches.
    async fn events_task(self: Rc<Self>, sender: Rc<Events>) {
        // What found the queue full.
        let mut held = None;
        loop {
            let interval = async {
                Timer::new(sender.port.interval).await;
            };
            or(interval, sender.answered.wait()).await;
            self.send_events(&sender.port, &mut held).await;
        }
    }

    async fn send_events(&self, port: &Port, held: &mut Option<Given>) {
        loop {
            let next = held.take().or_else(|| {
                let next = self.shard.borrow_mut().next_for_topic(port.bounds);
                next.map(|next| port.given(next))
            });
            let Some(given) = next else { break };
            if let Err(given) = port.give(given) {
                *held = Some(*given);
                break;
            }
            Timer::new(PAUSE).await;
        }
        // Attempts that began wait for company on the way to the log, but not for ever.
        if self.shard.borrow().has_unproposed() {
            self.perform();
        }
    }

    /// Takes answers of the thread.
    async fn events_answers(self: Rc<Self>, sender: Rc<Events>, wake: std::os::unix::net::UnixStream) {
        let mut wake = Wake::new(wake);
        while wake.rung().await {
            while let Ok(answer) = sender.port.answers.try_recv() {
                self.input(Input::Sent { partition: answer.partition, term: answer.term, sent: answer.sent });
            }
            self.perform();
            sender.answered.ring();
        }
    }
}
