//! The services `Status` and `Control`: what a person or a dashboard asks, and may order.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use tina_proto::v1::{
    self, ControlReply, ControlRequest, ListCompletionsReply, ListCompletionsRequest,
    ListStepsReply, ListStepsRequest, ListWorkersReply, ListWorkersRequest, RunStatus,
    StatusRequest, WatchStatusRequest, control_server, status_server,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Inbound, Shared};
use crate::scheduler::types::Event;

/// Answers, and passes orders on.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    shared: Arc<Shared>,
}

impl Ask {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn status(&self) -> RunStatus {
        RunStatus::clone(&self.shared.status.borrow())
    }

    async fn order(&self, event: Event, message: &str) -> Result<Response<ControlReply>, Status> {
        let over = |_| Status::unavailable("the run is over");
        self.shared
            .inbound
            .send(Inbound::Event(event))
            .await
            .map_err(over)?;
        Ok(Response::new(ControlReply {
            message: message.into(),
        }))
    }
}

fn limit(asked: u32, default: u32, most: u32) -> u32 {
    if asked == 0 { default } else { asked.min(most) }
}

#[tonic::async_trait]
impl status_server::Status for Ask {
    type WatchStatusStream = Pin<Box<dyn Stream<Item = Result<RunStatus, Status>> + Send>>;

    async fn get_status(&self, _: Request<StatusRequest>) -> Result<Response<RunStatus>, Status> {
        Ok(Response::new(self.status()))
    }

    async fn watch_status(
        &self,
        request: Request<WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let interval = match request.into_inner().interval_ms {
            0 => Duration::from_secs(1),
            ms => Duration::from_millis(u64::from(ms.clamp(50, 60_000))),
        };
        let mut status = self.shared.status.clone();
        let (reports, stream) = mpsc::channel(4);
        tokio::spawn(async move {
            loop {
                let report = RunStatus::clone(&status.borrow_and_update());
                let at = (report.phase, report.step);
                if reports.send(Ok(report)).await.is_err() {
                    return;
                }
                let changed = status.wait_for(|now| (now.phase, now.step) != at);
                tokio::select! {
                    outcome = tokio::time::timeout(interval, changed) => {
                        if matches!(outcome, Ok(Err(_))) {
                            return; // the run is over, and the last report is out
                        }
                    }
                    () = reports.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn list_workers(
        &self,
        _: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersReply>, Status> {
        let workers = self.shared.status.borrow().workers.clone();
        Ok(Response::new(ListWorkersReply { workers }))
    }

    async fn list_steps(
        &self,
        request: Request<ListStepsRequest>,
    ) -> Result<Response<ListStepsReply>, Status> {
        let ListStepsRequest {
            from_step,
            limit: asked,
        } = request.into_inner();
        let from = from_step.min(i64::MAX as u64);
        let steps = self
            .shared
            .journal
            .steps(from, limit(asked, 100, 1000))
            .await;
        let steps = steps.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(ListStepsReply { steps }))
    }

    async fn list_completions(
        &self,
        request: Request<ListCompletionsRequest>,
    ) -> Result<Response<ListCompletionsReply>, Status> {
        let ListCompletionsRequest { step, limit: asked } = request.into_inner();
        let step = step.min(i64::MAX as u64);
        let completions = self
            .shared
            .journal
            .completions(step, limit(asked, 50, 500))
            .await;
        let completions = completions.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(ListCompletionsReply { completions }))
    }
}

#[tonic::async_trait]
impl control_server::Control for Ask {
    async fn pause(&self, _: Request<ControlRequest>) -> Result<Response<ControlReply>, Status> {
        self.order(
            Event::Pause,
            "no prompts are handed out after this step, until Resume",
        )
        .await
    }

    async fn resume(&self, _: Request<ControlRequest>) -> Result<Response<ControlReply>, Status> {
        self.order(Event::Resume, "the run goes on").await
    }

    async fn stop(&self, _: Request<ControlRequest>) -> Result<Response<ControlReply>, Status> {
        let phase = v1::Phase::try_from(self.shared.status.borrow().phase);
        let message = match phase {
            Ok(v1::Phase::Sampling | v1::Phase::Learning) => {
                "the run ends after this step; --resume goes on from there"
            }
            _ => "the run ends; --resume goes on from here",
        };
        self.order(Event::Stop, message).await
    }
}
