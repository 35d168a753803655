//! Server-sent events: the activities as they come and, for the page, the state once a second.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Json, Response};
use futures::stream::{Stream, unfold};
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use tokio::time::{MissedTickBehavior, interval};

use super::view::{ActivitiesJson, ActivityJson};
use super::{Admin, PAGE_EVERY, fail};

/// How often a stream with nothing to say says so.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    follow: Option<bool>,
    state: Option<u8>,
}

pub(super) async fn events(
    State(admin): State<Admin>,
    Query(query): Query<EventsQuery>,
) -> Response {
    if query.follow == Some(false) {
        return Json(ActivitiesJson { events: admin.inner.recent.last() }).into_response();
    }
    let Ok(place) = Arc::clone(&admin.inner.streams).try_acquire_owned() else {
        return fail(StatusCode::SERVICE_UNAVAILABLE, "too many event streams are open");
    };
    let stream = follow(admin, query.state.unwrap_or(0) > 0, place);
    Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

struct Follow {
    admin: Admin,
    past: std::vec::IntoIter<ActivityJson>,
    coming: broadcast::Receiver<ActivityJson>,
    state: Option<Arc<str>>,
    beat: tokio::time::Interval,
    with_state: bool,
    _place: OwnedSemaphorePermit,
}

fn follow(
    admin: Admin,
    with_state: bool,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let (past, coming) = admin.inner.recent.follow();
    let mut beat = interval(PAGE_EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let follow = Follow {
        past: past.into_iter(),
        coming,
        state: None,
        beat,
        with_state,
        _place: place,
        admin,
    };
    unfold(follow, |mut follow| async move {
        let event = follow.next().await?;
        Some((Ok(event), follow))
    })
}

impl Follow {
    async fn next(&mut self) -> Option<Event> {
        let stop = self.admin.inner.stop.clone();
        loop {
            if self.with_state && self.state.is_none() {
                return Some(self.new_state(self.admin.page_state()));
            }
            if let Some(activity) = self.past.next() {
                return Some(activity_event(&activity));
            }
            tokio::select! {
                activity = self.coming.recv() => match activity {
                    Ok(activity) => return Some(activity_event(&activity)),
                    Err(RecvError::Lagged(missed)) => {
                        return Some(Event::default().event("missed").data(missed.to_string()));
                    }
                    Err(RecvError::Closed) => return None,
                },
                _ = self.beat.tick(), if self.with_state => {
                    let state = self.admin.page_state();
                    if self.state.as_ref() != Some(&state) {
                        return Some(self.new_state(state));
                    }
                }
                () = stop.cancelled() => return None,
            }
        }
    }

    fn new_state(&mut self, state: Arc<str>) -> Event {
        let event = Event::default().event("state").data(&*state);
        self.state = Some(state);
        event
    }
}

fn activity_event(activity: &ActivityJson) -> Event {
    let data = serde_json::to_string(activity).unwrap_or_default();
    Event::default().event("activity").data(data)
}
