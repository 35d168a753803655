//! One context in every format that names a trace, for the tests of the headers here and on the
//! wire.

/// One context in each format: 128-bit id, sampled, and the headers that say so.
pub(crate) const FORMATS: [(&str, &[(&str, &str)]); 6] = [
    ("tracecontext", &[("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]),
    ("b3", &[("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1")]),
    (
        "b3multi",
        &[
            ("x-b3-traceid", "0af7651916cd43dd8448eb211c80319c"),
            ("x-b3-spanid", "b7ad6b7169203331"),
            ("x-b3-sampled", "1"),
        ],
    ),
    ("jaeger", &[("uber-trace-id", "0af7651916cd43dd8448eb211c80319c:b7ad6b7169203331:0:1")]),
    (
        "datadog",
        &[
            ("x-datadog-trace-id", "9532127138774266268"),
            ("x-datadog-parent-id", "13235353014750950193"),
            ("x-datadog-sampling-priority", "1"),
            ("x-datadog-tags", "_dd.p.tid=0af7651916cd43dd"),
        ],
    ),
    (
        "xray",
        &[(
            "x-amzn-trace-id",
            "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331;Sampled=1",
        )],
    ),
];
