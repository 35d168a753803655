#!/bin/sh
# Roles and users of etcd for Pintle: agents read, the instances of a service write below its name.
#
#   AGENT_PASSWORD=... ORDERS_PASSWORD=... sh roles.sh
#
# etcdctl is told where etcd is, and who root is, by ETCDCTL_ENDPOINTS and ETCDCTL_USER. Users count
# once authentication is on: `etcdctl user add root`, `etcdctl user grant-role root root` and
# `etcdctl auth enable`.
set -eu

for password in "$AGENT_PASSWORD" "$ORDERS_PASSWORD"; do
    case "$password" in
    '' | *[[:space:]]*)
        echo "a password is empty or has a space, up to which etcdctl reads it" >&2
        exit 64
        ;;
    esac
done

user() {
    printf '%s\n' "$3" | etcdctl user add "$1" --interactive=false
    etcdctl user grant-role "$1" "$2"
}

# What `etcd.services` and `etcd.policies` are by default; a source of another format needs its prefix.
etcdctl role add pintle-agent
etcdctl role grant-permission pintle-agent read --prefix /services/
etcdctl role grant-permission pintle-agent read --prefix /pintle/policies/
user pintle-agent pintle-agent "$AGENT_PASSWORD"

# `pintle register --service orders`, and nobody else's service.
etcdctl role add pintle-orders
etcdctl role grant-permission pintle-orders readwrite --prefix /services/orders/
user pintle-orders pintle-orders "$ORDERS_PASSWORD"
