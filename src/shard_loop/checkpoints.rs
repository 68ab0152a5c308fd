//! Checkpoints between the engine and the foreign thread: batches go out in slices between other work, answers come back.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::rc::Rc;
use std::time::Duration;

use futures_lite::AsyncReadExt;
use futures_lite::future::or;
use glommio::net::UnixStream;
use glommio::timer::Timer;
use taskmaster_connect::postgres::{Found, Given, Request, StoredTask};
use taskmaster_engine::checkpoint::BatchBounds;
use taskmaster_engine::{Input, Question, Refused};
use taskmaster_net::wake::Bell;
use taskmaster_protocol::Code;
use taskmaster_protocol::body::{self, TaskInfo, TaskPage};

use super::ShardLoop;
use crate::foreign::{Port, ToShard};

/// Tasks and bytes gathered in one slice.
const SLICE_TASKS: usize = 4_096;
const SLICE_BYTES: usize = 1 << 20;
/// When a question should be asked again, in milliseconds.
const QUESTION_RETRY_MS: u32 = 200;
/// Pause between slices.
pub(super) const PAUSE: Duration = Duration::from_micros(200);

/// A shard's part in checkpoints.
pub(super) struct Checkpoints {
    pub(super) port: Port,
    /// Rung by answers.
    answered: Bell,
    /// Who asked about which task, by the number of the question.
    questions: RefCell<HashMap<u64, Question>>,
    last_question: Cell<u64>,
}

impl Checkpoints {
    pub(super) fn new(port: Port) -> Self {
        Self { port, answered: Bell::default(), questions: RefCell::default(), last_question: Cell::new(0) }
    }
}

impl ShardLoop {
    /// Starts what sends and receives, where there is a store.
    pub(super) fn start_checkpoints(self: &Rc<Self>, wake: Option<std::os::unix::net::UnixStream>) {
        if let (Some(checkpoints), Some(wake)) = (&self.checkpoints, wake) {
            if checkpoints.port.sends {
                glommio::spawn_local(Rc::clone(self).checkpoint_task(Rc::clone(checkpoints))).detach();
            }
            glommio::spawn_local(Rc::clone(self).store_task(Rc::clone(checkpoints), wake)).detach();
        }
    }

    /// Sends final tasks to the store, at every interval what there is, and after answers what is a batch already.
    pub(super) async fn checkpoint_task(self: Rc<Self>, checkpoints: Rc<Checkpoints>) {
        let port = &checkpoints.port;
        let full = BatchBounds { tasks_min: u32::try_from(port.bounds.tasks).unwrap_or(u32::MAX), ..port.bounds };
        // What found its queue full.
        let mut held = None;
        let mut due = Timer::new(port.interval);
        loop {
            let is_due = or(
                async {
                    (&mut due).await;
                    true
                },
                async {
                    checkpoints.answered.wait().await;
                    false
                },
            )
            .await;
            if is_due {
                due = Timer::new(port.interval);
            }
            self.send_checkpoints(port, if is_due { port.bounds } else { full }, &mut held).await;
        }
    }

    async fn send_checkpoints(&self, port: &Port, bounds: BatchBounds, held: &mut Option<Given>) {
        let (mut tasks, mut bytes) = (0, 0);
        loop {
            let next = held.take().or_else(|| {
                let next = self.shard.borrow_mut().next_for_store(bounds);
                next.map(|next| port.given(next))
            });
            let Some(given) = next else { return };
            if let Request::Batch(batch) = &given.request {
                tasks += batch.tasks.len();
                bytes += batch.bytes.len();
            }
            if let Err(given) = port.give(given) {
                *held = Some(*given);
                return;
            }
            if tasks >= SLICE_TASKS || bytes >= SLICE_BYTES {
                (tasks, bytes) = (0, 0);
                Timer::new(PAUSE).await;
            }
        }
    }

    /// Takes answers of the foreign thread.
    #[expect(unsafe_code, reason = "glommio takes over a socket only by its raw descriptor")]
    pub(super) async fn store_task(self: Rc<Self>, checkpoints: Rc<Checkpoints>, wake: std::os::unix::net::UnixStream) {
        // SAFETY: the descriptor was given up by its only owner in this expression.
        let mut wake = unsafe { UnixStream::from_raw_fd(wake.into_raw_fd()) };
        let mut rings = [0u8; 256];
        loop {
            match wake.read(&mut rings).await {
                Ok(0) => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return,
                Ok(_) => {}
            }
            while let Ok(answer) = checkpoints.port.answers.try_recv() {
                match answer {
                    ToShard::Stored { partition, term, stored } => {
                        self.input(Input::Stored { partition, term, stored })
                    }
                    ToShard::Found(number, found) => self.found(&checkpoints, number, found),
                    ToShard::Restore(batch) => self.input(Input::Restore(&batch)),
                    ToShard::Number(partition, asker) => {
                        // Who asked waits for nothing else.
                        let _ = asker.try_send(self.shard.borrow().last_number(partition));
                    }
                }
            }
            self.perform();
            checkpoints.answered.ring();
        }
    }

    /// Asks the foreign thread about tasks that are not here.
    pub(super) fn ask(&self, questions: Vec<Question>) {
        for question in questions {
            let Some(checkpoints) = &self.checkpoints else {
                self.refuse(&question, Code::UnknownTask, "it was never accepted, or its retention is over", 0);
                continue;
            };
            let number = checkpoints.last_question.get() + 1;
            checkpoints.last_question.set(number);
            if checkpoints.port.ask(number, question.id) {
                checkpoints.questions.borrow_mut().insert(number, question);
            } else {
                self.refuse(&question, Code::Overloaded, "too many ask the database: ask again", QUESTION_RETRY_MS);
            }
        }
    }

    fn found(&self, checkpoints: &Checkpoints, number: u64, found: Found) {
        let Some(question) = checkpoints.questions.borrow_mut().remove(&number) else { return };
        match found {
            Found::Task(task) => self.effects.borrow_mut().answer(&question, Ok(&page(&task))),
            Found::Nothing => {
                let sentence = "it was never accepted, or it is neither kept nor in the database";
                self.refuse(&question, Code::UnknownTask, sentence, 0);
            }
            Found::Failed(sentence) => {
                let sentence = format!("it is not kept here, and the database could not be asked: {sentence}");
                self.refuse(&question, Code::Overloaded, &sentence, QUESTION_RETRY_MS);
            }
        }
    }

    fn refuse(&self, question: &Question, code: Code, why: &str, retry_after_ms: u32) {
        let sentence = format!("no task {} is known here: {why}", question.id);
        let refused = Refused::new(code, sentence).retry_after_ms(retry_after_ms);
        self.effects.borrow_mut().answer(question, Err(&refused));
    }
}

/// A stored task as the protocol describes one.
fn page(task: &StoredTask) -> TaskPage {
    let mut page = TaskPage::default();
    let mut put = |bytes: &[u8]| body::put(&mut page.bytes, bytes);
    let info = TaskInfo {
        id: task.id.into(),
        workflow: task.workflow.into(),
        at_us: task.finished_us,
        started_us: task.started_us,
        deadline_ms: task.deadline_us / 1_000,
        namespace: put(task.namespace.as_bytes()),
        queue: put(task.queue.as_bytes()),
        kind: put(task.kind.as_bytes()),
        name: put(task.name.as_bytes()),
        payload: put(&task.payload),
        result: put(&task.result),
        error_code: put(task.error_code.as_bytes()),
        error: put(task.error.as_bytes()),
        log_tail: put(&task.log_tail),
        attempt: task.attempts,
        attempts_max: task.attempts_max,
        state: task.state,
        priority: task.priority,
        late: task.late.into(),
        ..TaskInfo::default()
    };
    page.rows.push(info);
    page
}
