//! Checkpoints between the engine and the foreign thread: batches go out in slices between other work, answers come back.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future::or;
use glommio::timer::Timer;
use taskmaster_connect::postgres::{Found, Given, Listed, Request, StoredTask};
use taskmaster_engine::checkpoint::BatchBounds;
use taskmaster_engine::{About, Input, Question, Refused, State, StoredPlace, memo_note};
use taskmaster_net::wake::Bell;
use taskmaster_protocol::Code;
use taskmaster_protocol::body::{self, RESTARTABLE, TaskInfo, TaskPage};

use super::ShardLoop;
use super::wake::Wake;
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
    /// Who asked about what, by the number of the question.
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
    pub(super) async fn store_task(self: Rc<Self>, checkpoints: Rc<Checkpoints>, wake: std::os::unix::net::UnixStream) {
        let mut wake = Wake::new(wake);
        while wake.rung().await {
            while let Ok(answer) = checkpoints.port.answers.try_recv() {
                match answer {
                    ToShard::Stored { partition, term, stored } => {
                        self.input(Input::Stored { partition, term, stored })
                    }
                    ToShard::Found(number, found) => self.found(&checkpoints, number, found),
                    ToShard::Listed(number, listed) => self.listed(&checkpoints, number, listed),
                    ToShard::Restore(from) => self.input(Input::Restore(&from)),
                    ToShard::Holding(partition, asker) => {
                        // Who asked waits for nothing else.
                        let _ = asker.try_send(self.shard.borrow().holding(partition));
                    }
                }
            }
            self.perform();
            checkpoints.answered.ring();
        }
    }

    /// Asks the foreign thread about what is not here.
    pub(super) fn ask(&self, questions: Vec<Question>) {
        for question in questions {
            let Some(checkpoints) = &self.checkpoints else {
                match question.about {
                    About::Task(_) => self.unknown(&question, "it was never accepted, or its retention is over"),
                    About::Tasks(_) => self.not_yet(&question, "this node has no database"),
                }
                continue;
            };
            let number = checkpoints.last_question.get() + 1;
            checkpoints.last_question.set(number);
            if checkpoints.port.ask(number, &question.about) {
                checkpoints.questions.borrow_mut().insert(number, question);
            } else {
                self.not_yet(&question, "too many ask the database: ask again");
            }
        }
    }

    fn found(&self, checkpoints: &Checkpoints, number: u64, found: Found) {
        let Some(question) = checkpoints.questions.borrow_mut().remove(&number) else { return };
        match found {
            Found::Task(task) => {
                let mut page = TaskPage::default();
                put(&task, &mut page);
                self.effects.borrow_mut().answer(&question, Ok(&page));
            }
            Found::Nothing => {
                self.unknown(&question, "it was never accepted, or it is neither kept nor in the database")
            }
            Found::Failed(sentence) => self.not_yet(&question, &format!("the database could not be asked: {sentence}")),
        }
    }

    fn listed(&self, checkpoints: &Checkpoints, number: u64, listed: Listed) {
        let Some(question) = checkpoints.questions.borrow_mut().remove(&number) else { return };
        let About::Tasks(asked) = &question.about else { return };
        let (tasks, next) = match listed {
            Listed::Tasks(tasks, next) => (tasks, next),
            Listed::Failed(sentence) => {
                self.not_yet(&question, &format!("the database could not be asked: {sentence}"));
                return;
            }
        };
        let next = next.map(|place| StoredPlace { back: place.back, number: place.upto });
        let mut page = TaskPage { cursor: asked.cursor(next), ..TaskPage::default() };
        let shard = self.shard.borrow();
        for task in &tasks {
            match shard.list_kept(task.id.into(), asked.checkpointed, &mut page) {
                Ok(true) => {}
                Ok(false) => put(task, &mut page),
                Err(refused) => return self.effects.borrow_mut().answer(&question, Err(&refused)),
            }
        }
        self.effects.borrow_mut().answer(&question, Ok(&page));
    }

    fn unknown(&self, question: &Question, why: &str) {
        let About::Task(id) = question.about else { return };
        let refused = Refused::new(Code::UnknownTask, format!("no task {id} is known here: {why}"));
        self.effects.borrow_mut().answer(question, Err(&refused));
    }

    fn not_yet(&self, question: &Question, why: &str) {
        let sentence = match question.about {
            About::Task(id) => format!("no task {id} is known here: it is not kept here, and {why}"),
            About::Tasks(_) => format!("the listing goes on in the database, and {why}"),
        };
        let refused = Refused::new(Code::Overloaded, sentence).retry_after_ms(QUESTION_RETRY_MS);
        self.effects.borrow_mut().answer(question, Err(&refused));
    }
}

/// Adds a stored task to a page.
fn put(task: &StoredTask, page: &mut TaskPage) {
    let mut put = |bytes: &[u8]| body::put(&mut page.bytes, bytes);
    let note = match (task.memo_of, State::from_number(task.state)) {
        (of, Some(state)) if of != 0 => memo_note(state, of.into()),
        _ => task.note.clone(),
    };
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
        priority: task.priority | if task.restartable { RESTARTABLE } else { 0 },
        late: task.late.into(),
        note: put(note.as_bytes()),
        done_permille: task.done_permille,
        memo: u8::from(task.memo_of != 0),
        ..TaskInfo::default()
    };
    page.rows.push(info);
}
