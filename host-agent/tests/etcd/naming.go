// Registers one endpoint by etcd's own library until its standard input ends:
// naming URL TARGET ADDRESS.
package main

import (
	"context"
	"io/ioutil"
	"log"
	"os"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/naming/endpoints"
)

func main() {
	url, target, address := os.Args[1], os.Args[2], os.Args[3]
	ctx := context.Background()
	client, err := clientv3.NewFromURL(url)
	must(err)
	manager, err := endpoints.NewManager(client, target)
	must(err)
	lease, err := client.Grant(ctx, 30)
	must(err)
	endpoint := endpoints.Endpoint{Addr: address, Metadata: map[string]string{"zone": "a"}}
	must(manager.AddEndpoint(ctx, target+"/"+address, endpoint, clientv3.WithLease(lease.ID)))
	ioutil.ReadAll(os.Stdin)
	_, err = client.Revoke(ctx, lease.ID)
	must(err)
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
