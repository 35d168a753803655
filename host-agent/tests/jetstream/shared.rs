//! NATS as it is shared: with other applications, other accounts, leafnodes, and what an operator
//! made.

use std::path::PathBuf;

use futures::StreamExt as _;

use super::*;

fn warned(agent: &Agent, text: &str) -> bool {
    agent.sources().nats.warnings.values().any(|warning| warning.contains(text))
}

/// A server with this configuration beside its arguments.
async fn nats_with(place: &Place, conf: &str) -> Nats {
    let path: PathBuf = place.dir.path().join("nats.conf");
    std::fs::write(&path, conf).unwrap();
    Nats::start_with(&["-c", &path.display().to_string()]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_applications_requests_below_events_are_not_answered_by_us() {
    let nats = Nats::start().await.unwrap();
    let place = Place::new();
    let agent = Agent::start(place.config(&nats.url()));
    ready(&agent).await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let mut asked = client.subscribe("events.audit.>").await.unwrap();
    client.flush().await.unwrap();
    let answers = client.clone();
    tokio::spawn(async move {
        while let Some(message) = asked.next().await {
            let reply = message.reply.unwrap();
            answers.publish(reply, "theirs".into()).await.unwrap();
        }
    });
    for n in 0..20 {
        let answer = client.request(format!("events.audit.{n}"), "?".into()).await.unwrap();
        assert_eq!(answer.payload, "theirs");
    }
    let stream = js(&nats).await.get_stream("PINTLE_EVENTS").await.unwrap();
    assert_eq!(stream.cached_info().state.messages, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_differs_is_used_and_named_with_the_remedy_and_left_alone() {
    let nats = Nats::start().await.unwrap();
    let js = js(&nats).await;
    // As an earlier release made it, but for the retention.
    let earlier = jetstream::stream::Config {
        name: "PINTLE_EVENTS".into(),
        subjects: vec!["events.>".into()],
        max_age: secs(3600),
        ..Default::default()
    };
    js.create_stream(earlier).await.unwrap();
    let place = Place::new();
    let config = place.config(&nats.url());
    let agent = Agent::start(config.clone());
    ready(&agent).await;
    for text in ["max_age is 3600s, wanted 86400s", "--subjects 'events.endpoint.>,events.service"]
    {
        assert!(warned(&agent, text), "{text}: {:?}", agent.sources().nats);
    }
    // What others put there is none of our events.
    js.publish("events.audit.1", "theirs".into()).await.unwrap().await.unwrap();
    let events = Events::connect(&nats_config(&config)).await.unwrap();
    events.publish(&draft("orders", "e1", Action::Drain, 60)).await.unwrap();
    agent.until(secs(5), "drained", |a| health(a, "e1") == Some(Health::Draining)).await;
    assert_eq!(agent.sources().events_dead_lettered, 0);
    let stream = js.get_stream("PINTLE_EVENTS").await.unwrap();
    assert_eq!(stream.cached_info().config.max_age, secs(3600));
    agent.stop().await;

    let mut absent = config;
    if let Some(nats) = &mut absent.nats {
        nats.stream = "ELSEWHERE".into();
        nats.create = false;
    }
    let agent = Agent::start(absent);
    agent
        .until(secs(10), "absent", |a| {
            a.sources().nats.error.is_some_and(|e| e.contains("ELSEWHERE does not exist"))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_go_on_without_dead_letters_and_with_another_back_off() {
    let nats = Nats::start().await.unwrap();
    let js = js(&nats).await;
    let taken = jetstream::stream::Config {
        name: "THEIRS".into(),
        subjects: vec!["pintle.dlq.>".into()],
        ..Default::default()
    };
    js.create_stream(taken).await.unwrap();
    let place = Place::new();
    let mut config = place.config(&nats.url());
    let agent = Agent::start(config.clone());
    ready(&agent).await;
    agent.until(secs(5), "said", |a| warned(a, "broken events are not kept")).await;
    let events = Events::connect(&nats_config(&config)).await.unwrap();
    let poison = js.publish("events.endpoint.orders/e1", "poison".into());
    poison.await.unwrap().await.unwrap();
    events.publish(&draft("orders", "e1", Action::Drain, 60)).await.unwrap();
    agent.until(secs(5), "drained", |a| health(a, "e1") == Some(Health::Draining)).await;
    let stream = js.get_stream("PINTLE_EVENTS").await.unwrap();
    let pending =
        async || stream.consumer_info("pintle-test:endpoint").await.unwrap().num_ack_pending;
    pintle_tests::assert_eventually!(secs(5), pending().await == 0);
    // There is room for them now.
    js.delete_stream("THEIRS").await.unwrap();
    agent.stop().await;

    if let Some(nats) = &mut config.nats {
        nats.backoff = vec![secs(1), secs(2)];
    }
    let agent = Agent::start(config);
    ready(&agent).await;
    assert!(agent.sources().nats.warnings.is_empty(), "{:?}", agent.sources().nats);
    let info = stream.consumer_info("pintle-test:endpoint").await.unwrap();
    assert_eq!(info.config.backoff, [secs(1), secs(2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_permissions_of_the_file_are_enough_and_a_denied_subject_is_named() {
    let place = Place::new();
    let file = pintle_tests::tools::root().join("envoy/nats/pintle.conf");
    let file = std::fs::read_to_string(file).unwrap();
    let passwords = "PINTLE_AGENT_PASSWORD: right\nPINTLE_OPERATOR_PASSWORD: right\n";
    let nats = nats_with(&place, &format!("{passwords}{file}")).await;
    let secret = place.dir.path().join("secret");
    std::fs::write(&secret, "right").unwrap();
    let with = |nats: &Nats, user: &str| {
        let mut config = place.config(&nats.url());
        config.agent = user.into();
        config.state.dir = None;
        if let Some(nats) = &mut config.nats {
            nats.user = Some(user.into());
            nats.password = Some(SecretRef::File(secret.clone()));
        }
        config
    };
    let agent = Agent::start(with(&nats, "pintle-agent"));
    ready(&agent).await;
    let operator = nats_config(&with(&nats, "pintle-operator"));
    let events = Events::connect(&operator).await.unwrap();
    let how = How { wait: secs(5), force: false };
    let done = events.order(&draft("orders", "e1", Action::Drain, 60), how).await.unwrap();
    assert_eq!(done.applied.len(), 1, "{done:?}");
    assert!(agent.sources().nats.warnings.is_empty(), "{:?}", agent.sources().nats);

    let few = file.replace("\"$JS.API.STREAM.INFO.*\", ", "");
    let nats = nats_with(&place, &format!("{passwords}{few}")).await;
    let agent = Agent::start(with(&nats, "pintle-agent"));
    let named = |a: &Agent| {
        let error = a.sources().nats.error.unwrap_or_default();
        error.contains("publish to \"$JS.API.STREAM.INFO.PINTLE_EVENTS\"")
            && error.contains(&nats.addr().to_string())
    };
    agent.until(secs(10), "the denied subject", named).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jetstream_off_and_an_unknown_user_are_named_with_the_server() {
    let place = Place::new();
    let conf = "accounts: { OFF: { users: [ { user: u, password: right } ] } }\n";
    let nats = nats_with(&place, conf).await;
    let secret = place.dir.path().join("secret");
    for (password, text) in [("right", "JetStream is off at"), ("wrong", "authorization")] {
        std::fs::write(&secret, password).unwrap();
        let mut config = place.config(&nats.url());
        config.state.dir = None;
        if let Some(nats) = &mut config.nats {
            nats.user = Some("u".into());
            nats.password = Some(SecretRef::File(secret.clone()));
        }
        let agent = Agent::start(config);
        let named = |a: &Agent| {
            let error = a.sources().nats.error.unwrap_or_default();
            error.contains(text) && error.contains(&nats.addr().to_string())
        };
        agent.until(secs(10), text, named).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_of_one_name_are_noticed_by_both() {
    let nats = Nats::start().await.unwrap();
    let place = Place::new();
    let mut config = place.config(&nats.url());
    config.state.dir = None;
    let (first, second) = (Agent::start(config.clone()), Agent::start(config));
    for agent in [&first, &second] {
        agent.until(secs(40), "noticed", |a| warned(a, "two agents are called test")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_is_reached_through_a_leafnode() {
    let place = Place::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let hub =
        format!("jetstream {{ domain: hub }}\nleafnodes {{ listen: \"127.0.0.1:{port}\" }}\n");
    let hub = nats_with(&place, &hub).await;
    let leaf = format!(
        "jetstream {{ domain: leaf }}\n\
         leafnodes {{ remotes: [ {{ url: \"nats://127.0.0.1:{port}\" }} ] }}\n"
    );
    let leaf = nats_with(&place, &leaf).await;
    let mut config = place.config(&leaf.url());
    if let Some(nats) = &mut config.nats {
        nats.domain = Some("hub".into());
    }
    let agent = Agent::start(config.clone());
    ready(&agent).await;
    assert!(js(&hub).await.get_stream("PINTLE_EVENTS").await.is_ok(), "at the hub");
    assert!(js(&leaf).await.get_stream("PINTLE_EVENTS").await.is_err(), "not at the leaf");
    let events = Events::connect(&nats_config(&config)).await.unwrap();
    events.publish(&draft("orders", "e1", Action::Drain, 60)).await.unwrap();
    agent.until(secs(5), "drained", |a| health(a, "e1") == Some(Health::Draining)).await;
    let stream = js(&hub).await.get_stream("PINTLE_EVENTS").await.unwrap();
    let pending =
        async || stream.consumer_info("pintle-test:endpoint").await.unwrap().num_ack_pending;
    pintle_tests::assert_eventually!(secs(5), pending().await == 0);

    if let Some(nats) = &mut config.nats {
        (nats.domain, nats.api_prefix) = (None, Some("$JS.hub.API".into()));
    }
    let events = Events::connect(&nats_config(&config)).await.unwrap();
    assert_eq!(events.newest().await.unwrap(), 1);
}
