//! What the node sends: assignments are completed, acknowledgements accounted for, refusals delayed.

use anyhow::{Result, bail, ensure};
use hdrhistogram::Histogram;
use taskmaster_protocol::body::{self, ArchivedAssign, ArchivedBatchReply, ArchivedRefusal, CompleteRow, Credit};
use taskmaster_protocol::frame::{self, FLAG_RESEND, Frame, Header};
use taskmaster_protocol::{Code, Operation, PartitionId, TaskId};

use super::Generator;
use crate::connection::{Completion, Connection, Delayed, Link, Request};
use crate::control::refusal_text;
use crate::submission;

/// Least time before a request goes to another node: the map is looked at meanwhile.
const MOVE_NS: u64 = 10_000_000;

impl Generator<'_> {
    /// Receives and handles everything a connection has.
    pub(super) fn turn(&mut self, connection: &mut Connection) -> Result<()> {
        let Connection { inbound, link } = connection;
        loop {
            let more = inbound.receive(link.stream())?;
            let now_ns = self.shared.clock.now_ns();
            inbound.drain(|frame| self.handle(link, frame, now_ns))?;
            if !more {
                break;
            }
        }
        if link.credit_owed >= self.plan.credit.div_ceil(2) {
            link.give_credit();
        }
        Ok(())
    }

    fn handle(&mut self, link: &mut Link, frame: Frame<'_>, now_ns: u64) -> Result<()> {
        self.progress_ns = now_ns;
        match (Operation::from_number(frame.header.operation), frame.header.is_response()) {
            (Some(Operation::Submit), true) => self.on_submit_reply(link, frame, now_ns),
            (Some(Operation::Complete), true) => self.on_complete_reply(link, frame, now_ns),
            (Some(Operation::Assign), false) => self.on_assign(link, frame, now_ns),
            (Some(Operation::Revoke), false) => Ok(()),
            (Some(Operation::GoAway), false) => bail!("the node is shutting down"),
            _ => bail!("unexpected frame from the node: {:?}", frame.header),
        }
    }

    fn on_assign(&mut self, link: &mut Link, frame: Frame<'_>, now_ns: u64) -> Result<()> {
        let assign = body::access::<ArchivedAssign>(frame.body)?;
        link.credit_owed += u32::try_from(assign.rows.len())?;
        for rows in assign.rows.chunks(self.plan.completion_rows) {
            let mut completion = self.pool.pop().unwrap_or_default();
            completion.is_resend = false;
            completion.partition = frame.header.partition;
            for row in rows {
                let id = TaskId::from(&row.id);
                let payload = body::slice(&assign.bytes, row.payload)?;
                let (Some(sequence), Some(intended_ns)) =
                    (self.encoder.sequence(id.lo), submission::intended_ns(payload))
                else {
                    bail!("the node assigned task {id}, which this run did not submit");
                };
                if self.plan.verify {
                    ensure!(self.encoder.is_intact(payload, sequence), "the payload of task {id} came back changed");
                }
                let attempt = row.attempt.to_native();
                self.outcome.tallies.redelivered += u64::from(attempt > 1);
                let (token, locator) = (row.token.to_native(), row.locator.to_native());
                completion.body.rows.push(CompleteRow { id, token, locator, attempt, result: body::Span::default() });
                completion.stamps.push((sequence, intended_ns));
            }
            record(&mut self.outcome.initiation, &completion.stamps, now_ns, self.measure_from_ns);
            self.awaited_completes += 1;
            link.send_completion(completion);
        }
        Ok(())
    }

    fn on_submit_reply(&mut self, link: &mut Link, frame: Frame<'_>, now_ns: u64) -> Result<()> {
        let Some(submission) = link.submits.remove(frame.header.correlation) else {
            bail!("the node answered a submission that does not wait: {:?}", frame.header);
        };
        let code = Code::from_number(frame.header.code);
        if code == Code::Overloaded {
            return self.delay(link, frame, Request::Submit(submission), now_ns);
        }
        if code == Code::NotLeader {
            return self.move_on(link, frame, Request::Submit(submission), now_ns);
        }
        ensure!(code == Code::Ok, "the node refused a submission: {}", refusal_text(code, frame.body));
        let reply = body::access::<ArchivedBatchReply>(frame.body)?;
        // The first copy arrived: the tasks are kept.
        let is_kept = |code: u16| submission.is_resend && Code::from_number(code) == Code::Duplicate;
        let kept = reply.exceptions.iter().filter(|row| is_kept(row.code.to_native())).count();
        ensure!(
            reply.accepted.to_native() as usize + kept == submission.count as usize && kept == reply.exceptions.len(),
            "the node took {} of {} tasks; the first exception is {:?}",
            reply.accepted,
            submission.count,
            reply.exceptions.first().map(|row| Code::from_number(row.code.to_native()))
        );
        self.awaited_submits -= 1;
        self.outcome.ledger.acknowledge(submission.first, u64::from(submission.count));
        let (histogram, from_ns) = (&mut self.outcome.submit, self.measure_from_ns);
        submission.for_each_intended(self.schedule, |intended_ns, count| {
            record_one(histogram, intended_ns, count, now_ns, from_ns);
        });
        Ok(())
    }

    fn on_complete_reply(&mut self, link: &mut Link, frame: Frame<'_>, now_ns: u64) -> Result<()> {
        let Some(mut completion) = link.completes.remove(frame.header.correlation) else {
            bail!("the node answered a completion that does not wait: {:?}", frame.header);
        };
        let code = Code::from_number(frame.header.code);
        if code == Code::Overloaded {
            return self.delay(link, frame, Request::Complete(completion), now_ns);
        }
        if code == Code::NotLeader {
            return self.move_on(link, frame, Request::Complete(completion), now_ns);
        }
        ensure!(code == Code::Ok, "the node refused a completion: {}", refusal_text(code, frame.body));
        let reply = body::access::<ArchivedBatchReply>(frame.body)?;
        for exception in reply.exceptions.iter().rev() {
            let row = usize::try_from(exception.index.to_native())?;
            ensure!(row < completion.stamps.len(), "the node answered for row {row}, which was not sent");
            let (sequence, _) = completion.stamps.remove(row);
            if completion.is_resend && Code::from_number(exception.code.to_native()) == Code::AlreadyFinal {
                self.outcome.ledger.settle(sequence);
            } else {
                self.outcome.tallies.refused_completions += 1;
            }
        }
        ensure!(
            usize::try_from(reply.accepted.to_native())? == completion.stamps.len(),
            "the node took {} completions where its exceptions leave {}",
            reply.accepted,
            completion.stamps.len()
        );
        self.awaited_completes -= 1;
        for (sequence, _) in &completion.stamps {
            self.outcome.ledger.complete(*sequence);
        }
        record(&mut self.outcome.end_to_end, &completion.stamps, now_ns, self.measure_from_ns);
        self.outcome.tallies.last_done_ns = now_ns;
        completion.body.rows.clear();
        completion.stamps.clear();
        self.pool.push(completion);
        Ok(())
    }

    /// Keeps a request that another node is to take until it is known which one.
    fn move_on(&mut self, link: &mut Link, frame: Frame<'_>, mut request: Request, now_ns: u64) -> Result<()> {
        let refusal = body::access::<ArchivedRefusal>(frame.body)?;
        let Some(routes) = &self.shared.routes else {
            bail!("the node does not lead: {}", refusal_text(Code::NotLeader, frame.body));
        };
        routes.want();
        request.set_resend();
        self.outcome.tallies.moved += 1;
        self.delayed += 1;
        let wait_ns = u64::from(refusal.retry_after_ms.to_native()) * 1_000_000;
        link.delayed.push(Delayed { due_ns: now_ns + wait_ns.max(MOVE_NS), request });
        Ok(())
    }

    /// Keeps a request that was refused as overloaded until the node wants it again.
    fn delay(&mut self, link: &mut Link, frame: Frame<'_>, request: Request, now_ns: u64) -> Result<()> {
        let refusal = body::access::<ArchivedRefusal>(frame.body)?;
        let wait_ns = u64::from(refusal.retry_after_ms.to_native().max(1)) * 1_000_000;
        // Up to a quarter more, so that refused connections do not come back all at once.
        let jitter_ns = (now_ns % 1024) * (wait_ns / 4096);
        self.outcome.tallies.overloaded += 1;
        self.delayed += 1;
        link.delayed.push(Delayed { due_ns: now_ns + wait_ns + jitter_ns, request });
        Ok(())
    }
}

impl Link {
    pub(super) fn send_completion(&mut self, completion: Completion) {
        let partition = Some(PartitionId(completion.partition));
        let (correlation, completion) = self.completes.insert(completion);
        let mut header = Header::request(Operation::Complete, correlation, partition);
        header.flags |= if completion.is_resend { FLAG_RESEND } else { 0 };
        frame::encode(&mut self.out.frames, header, &completion.body);
    }

    pub(super) fn give_credit(&mut self) {
        let credit = Credit { credit: std::mem::take(&mut self.credit_owed) };
        frame::encode(&mut self.out.frames, Header::request(Operation::Credit, 0, None), &credit);
    }
}

/// Records the latency of each stamp up to `now_ns`, neighbours with the same intended time in one step.
fn record(histogram: &mut Histogram<u64>, stamps: &[(u64, u64)], now_ns: u64, from_ns: u64) {
    for streak in stamps.chunk_by(|a, b| a.1 == b.1) {
        record_one(histogram, streak[0].1, streak.len() as u64, now_ns, from_ns);
    }
}

fn record_one(histogram: &mut Histogram<u64>, intended_ns: u64, count: u64, now_ns: u64, from_ns: u64) {
    if intended_ns >= from_ns {
        histogram.saturating_record_n(now_ns.saturating_sub(intended_ns).max(1), count);
    }
}
