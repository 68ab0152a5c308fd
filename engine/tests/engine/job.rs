//! What tests submit, and how it becomes a submit body.

use taskmaster_protocol::body::{self, Extra, Span, Spec, Submit, TaskRow, WorkflowRow};
use taskmaster_protocol::{PartitionId, TaskId};

/// A task to submit. Made by [`job`], refined by its methods.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) id: TaskId,
    pub(crate) namespace: String,
    pub(crate) queue: String,
    pub(crate) kind: String,
    pub(crate) custom: String,
    pub(crate) non_retryable: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) name: String,
    pub(crate) unique_key: Vec<u8>,
    pub(crate) concurrency_key: Vec<u8>,
    pub(crate) needs: Vec<u32>,
    pub(crate) spec: Spec,
    pub(crate) extra: Extra,
}

/// A task for partition 0 with a lease of 10 s, three attempts without a pause between them, and no other wishes.
pub(crate) fn job(queue: &str, number: u32) -> Job {
    Job {
        id: id(0, number),
        namespace: String::new(),
        queue: queue.to_owned(),
        kind: "work".to_owned(),
        custom: String::new(),
        non_retryable: String::new(),
        payload: format!("payload {number}").into_bytes(),
        name: String::new(),
        unique_key: Vec::new(),
        concurrency_key: Vec::new(),
        needs: Vec::new(),
        spec: Spec { lease_ms: 10_000, attempts_max: 3, priority: 2, backoff_factor_centi: 200, ..Spec::default() },
        extra: Extra::default(),
    }
}

/// The id of the task with this number in a partition.
pub(crate) fn id(partition: u16, number: u32) -> TaskId {
    TaskId::new(super::world::START_US / 1_000, PartitionId(partition), 7, number + 1)
}

/// `count` plain tasks, numbered from `first`.
pub(crate) fn jobs(queue: &str, first: u32, count: u32) -> Vec<Job> {
    (first..first + count).map(|number| job(queue, number)).collect()
}

impl Job {
    pub(crate) fn in_partition(mut self, partition: u16) -> Self {
        self.id = TaskId { hi: self.id.hi & !0xFFFF | u64::from(partition), lo: self.id.lo };
        self
    }

    pub(crate) fn with_spec(mut self, change: impl FnOnce(&mut Spec)) -> Self {
        change(&mut self.spec);
        self
    }

    pub(crate) fn with_extra(mut self, change: impl FnOnce(&mut Extra)) -> Self {
        change(&mut self.extra);
        self
    }

    pub(crate) fn kind(mut self, kind: &str) -> Self {
        kind.clone_into(&mut self.kind);
        self
    }

    pub(crate) fn priority(self, priority: u8) -> Self {
        self.with_spec(|spec| spec.priority = priority)
    }

    pub(crate) fn lease_ms(self, lease_ms: u32) -> Self {
        self.with_spec(|spec| spec.lease_ms = lease_ms)
    }

    pub(crate) fn attempts(self, attempts_max: u16) -> Self {
        self.with_spec(|spec| spec.attempts_max = attempts_max)
    }

    pub(crate) fn backoff_ms(self, backoff_ms: u32, backoff_max_ms: u32) -> Self {
        self.with_spec(|spec| (spec.backoff_ms, spec.backoff_max_ms) = (backoff_ms, backoff_max_ms))
    }

    pub(crate) fn retention_ms(self, retention_ms: u32) -> Self {
        self.with_spec(|spec| spec.retention_ms = retention_ms)
    }

    pub(crate) fn delay_ms(self, delay_ms: u64) -> Self {
        self.with_extra(|extra| extra.delay_ms = delay_ms)
    }

    pub(crate) fn deadline_in_ms(self, deadline_in_ms: u64) -> Self {
        self.with_extra(|extra| extra.deadline_in_ms = deadline_in_ms)
    }

    pub(crate) fn unique(mut self, key: &str, window_ms: u32) -> Self {
        self.unique_key = key.into();
        self.extra.unique_window_ms = window_ms;
        self
    }

    /// Memoised, as of this version of its kind; a result of this age will do.
    pub(crate) fn memo(self, version: &str, age_max_ms: u32, payload: &str) -> Self {
        let mut job = self.unique(version, age_max_ms).with_spec(|spec| spec.memo = 1);
        job.payload = payload.into();
        job
    }

    /// An attempt may be ended and made again, or made twice at once.
    pub(crate) fn restartable(self) -> Self {
        self.with_spec(|spec| spec.restartable = 1)
    }

    pub(crate) fn concurrency(mut self, key: &str, limit: u32) -> Self {
        self.concurrency_key = key.into();
        self.extra.concurrency_limit = limit;
        self
    }

    pub(crate) fn needs(mut self, rows: &[u32]) -> Self {
        self.needs = rows.to_vec();
        self
    }

    fn has_extra(&self) -> bool {
        let extra = &self.extra;
        let times = extra.not_before_ms + extra.delay_ms + extra.deadline_ms + extra.deadline_in_ms;
        times > 0
            || !(self.name.is_empty() && self.unique_key.is_empty())
            || !(self.concurrency_key.is_empty() && self.needs.is_empty())
    }
}

/// The submit body of these tasks, one spec each.
pub(crate) fn body_of(jobs: &[Job]) -> Submit {
    let mut body = Submit::default();
    for job in jobs {
        append(&mut body, job);
    }
    body
}

/// The submit body of a workflow.
pub(crate) fn workflow_of(workflow: TaskId, name: &str, continues: bool, jobs: &[Job]) -> Submit {
    let mut body = body_of(jobs);
    let name = body::put(&mut body.bytes, name.as_bytes());
    body.workflow.push(WorkflowRow { id: workflow, name, on_failure: continues.into(), reserved: 0 });
    body
}

fn append(body: &mut Submit, job: &Job) {
    let mut put = |bytes: &[u8]| body::put(&mut body.bytes, bytes);
    let spec = Spec {
        namespace: put(job.namespace.as_bytes()),
        queue: put(job.queue.as_bytes()),
        kind: put(job.kind.as_bytes()),
        custom: put(job.custom.as_bytes()),
        non_retryable: put(job.non_retryable.as_bytes()),
        ..job.spec
    };
    let payload = put(&job.payload);
    let extra = Extra {
        unique_key: put(&job.unique_key),
        concurrency_key: put(&job.concurrency_key),
        name: put(job.name.as_bytes()),
        needs: Span { at: u32::try_from(body.needs.len()).unwrap(), len: u32::try_from(job.needs.len()).unwrap() },
        ..job.extra
    };
    let same = |known: &Spec| {
        let area = |span: Span| &body.bytes[span.at as usize..][..span.len as usize];
        let texts = |spec: &Spec| [spec.namespace, spec.queue, spec.kind, spec.custom, spec.non_retryable].map(area);
        let numbers = |spec: &Spec| {
            let pause = [spec.backoff_ms, spec.backoff_max_ms, spec.backoff_factor_centi.into()];
            let rest = [spec.cpu_milli, spec.gpu_milli, spec.lease_ms, spec.retention_ms, spec.attempts_max.into()];
            (spec.memory_bytes, [spec.priority, spec.memo, spec.restartable], pause, rest)
        };
        texts(known) == texts(&spec) && numbers(known) == numbers(&spec)
    };
    // The last spec is the likely one; large batches need no more.
    let position = match body.specs.last() {
        Some(last) if same(last) => body.specs.len() - 1,
        _ => {
            body.specs.push(spec);
            body.specs.len() - 1
        }
    };
    let mut number = 0;
    if job.has_extra() {
        body.needs.extend_from_slice(&job.needs);
        body.extras.push(extra);
        number = u32::try_from(body.extras.len()).unwrap();
    }
    body.tasks.push(TaskRow { id: job.id, spec: u32::try_from(position).unwrap(), extra: number, payload });
}
