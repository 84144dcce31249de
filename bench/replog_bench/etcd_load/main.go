// Command etcd_load keeps a fixed number of requests to etcd in flight and says what completed.
//
// It is a closed loop, as the loads of replog_bench are: each of the requests in flight belongs to
// a goroutine, which sends its next request when the one before has completed. What completes
// within the window counts; the warm-up before it does not, nor do requests that failed. A failed
// request ends its goroutine and is reported, and then nobody should believe the figures.
//
// All requests go to the leader, over as many connections as were asked for. The only output is
// one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/clientv3"
	"google.golang.org/grpc"
)

const (
	pause = 20 * time.Millisecond // Between two looks for a leader.
	last  = 8 * time.Second       // How long a request may take after the end of the window.
)

var (
	endpoints   = flag.String("endpoints", "", "addresses of every member, separated by commas")
	inFlight    = flag.Int("in-flight", 1, "requests in flight")
	connections = flag.Int("connections", 1, "connections that they share")
	kind        = flag.String("kind", "put", "put, or read for linearizable reads of one key")
	keyCount    = flag.Int("keys", 4096, "puts go round over so many keys")
	valueBytes  = flag.Int("value-bytes", 64, "size of a value")
	wait        = flag.Duration("wait", 15*time.Second, "for a leader and the connections to it")
	warmUp      = flag.Duration("warm-up", 500*time.Millisecond, "load before the window")
	window      = flag.Duration("window", 2*time.Second, "in which what completes counts")
)

// report is the line that is printed.
type report struct {
	Operations   int     `json:"operations"`
	OpsPerSecond float64 `json:"ops_per_second"`
	P50Ms        float64 `json:"p50_ms"`
	P99Ms        float64 `json:"p99_ms"`
	Errors       int     `json:"errors"`
	FirstError   string  `json:"first_error"`
	Version      string  `json:"version"`
}

// request sends one request, the number of which chooses its key.
type request func(ctx context.Context, number uint64) error

// loop is one request in flight, over and over.
type loop struct {
	latencies []time.Duration
	err       error
}

func main() {
	flag.Parse()
	said, err := run()
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(said)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "etcd_load:", err)
		os.Exit(1)
	}
}

// run finds the leader, connects and measures.
func run() (report, error) {
	switch {
	case *endpoints == "":
		return report{}, errors.New("-endpoints is missing")
	case *inFlight < 1 || *connections < 1 || *keyCount < 1 || *valueBytes < 0:
		return report{}, errors.New("a number is too small")
	case *kind != "put" && *kind != "read":
		return report{}, fmt.Errorf("-kind %q is neither put nor read", *kind)
	case *window <= 0 || *warmUp < 0:
		return report{}, errors.New("a time is too short")
	}
	ctx, cancel := context.WithTimeout(context.Background(), *wait)
	defer cancel()
	leader, version, err := findLeader(ctx, strings.Split(*endpoints, ","))
	if err != nil {
		return report{}, err
	}
	var clients []*clientv3.Client
	for len(clients) < *connections && len(clients) < *inFlight {
		client, err := clientv3.New(clientv3.Config{ // One address, so one connection.
			Endpoints:   []string{leader},
			DialTimeout: *wait,
			DialOptions: []grpc.DialOption{grpc.WithBlock()},
		})
		if err != nil {
			return report{}, fmt.Errorf("no connection to the leader %s: %w", leader, err)
		}
		defer client.Close()
		clients = append(clients, client)
	}
	requests, err := makeRequests(ctx, clients)
	if err != nil {
		return report{}, fmt.Errorf("the first put: %w", err)
	}
	said := summary(measure(requests))
	said.Version = version
	return said, nil
}

// findLeader waits until every member knows the same leader: its address and its version.
func findLeader(ctx context.Context, endpoints []string) (string, string, error) {
	members, err := clientv3.New(clientv3.Config{Endpoints: endpoints})
	if err != nil {
		return "", "", err
	}
	defer members.Close()
	for {
		agreed, address, version := map[uint64]bool{}, "", ""
		for _, endpoint := range endpoints {
			asked, cancel := context.WithTimeout(ctx, time.Second)
			status, err := members.Status(asked, endpoint)
			cancel()
			if err != nil {
				agreed[0] = true
				continue
			}
			agreed[status.Leader] = true
			if status.Leader == status.Header.MemberId {
				address, version = endpoint, status.Version
			}
		}
		if len(agreed) == 1 && !agreed[0] && address != "" {
			return address, version, nil
		}
		select {
		case <-ctx.Done():
			return "", "", errors.New("the members of etcd found no leader in time")
		case <-time.After(pause):
		}
	}
}

// makeRequests gives what each connection is asked, and puts the one key that reads look for.
func makeRequests(ctx context.Context, clients []*clientv3.Client) ([]request, error) {
	keys := make([]string, *keyCount)
	for number := range keys {
		keys[number] = fmt.Sprintf("key-%06d", number)
	}
	value := string(make([]byte, *valueBytes))
	if _, err := clients[0].Put(ctx, keys[0], value); err != nil {
		return nil, err
	}
	requests := make([]request, len(clients))
	for at, client := range clients {
		client := client
		requests[at] = func(ctx context.Context, number uint64) error {
			_, err := client.Put(ctx, keys[number%uint64(len(keys))], value)
			return err
		}
		if *kind == "read" {
			requests[at] = func(ctx context.Context, _ uint64) error {
				found, err := client.Get(ctx, keys[0]) // Linearizable unless told otherwise.
				if err == nil && (len(found.Kvs) != 1 || len(found.Kvs[0].Value) != len(value)) {
					return errors.New("a read did not find what had been put")
				}
				return err
			}
		}
	}
	return requests, nil
}

// measure keeps the requests in flight until the window is over.
func measure(requests []request) []loop {
	loops := make([]loop, *inFlight)
	begin := time.Now().Add(*warmUp)
	end := begin.Add(*window)
	ctx, cancel := context.WithDeadline(context.Background(), end.Add(last))
	defer cancel()
	var next uint64
	var running sync.WaitGroup
	for at := range loops {
		running.Add(1)
		go func(each *loop, ask request) {
			defer running.Done()
			for {
				started := time.Now()
				if each.err = ask(ctx, atomic.AddUint64(&next, 1)); each.err != nil {
					return
				}
				now := time.Now()
				if !now.Before(end) {
					return
				}
				if !now.Before(begin) {
					each.latencies = append(each.latencies, now.Sub(started))
				}
			}
		}(&loops[at], requests[at%len(requests)])
	}
	running.Wait()
	return loops
}

// summary puts together what the loops measured.
func summary(loops []loop) report {
	var said report
	var all []time.Duration
	for _, each := range loops {
		all = append(all, each.latencies...)
		if each.err != nil {
			if said.Errors == 0 {
				said.FirstError = each.err.Error()
			}
			said.Errors++
		}
	}
	sort.Slice(all, func(a, b int) bool { return all[a] < all[b] })
	said.Operations = len(all)
	said.OpsPerSecond = float64(len(all)) / window.Seconds()
	said.P50Ms = percentile(all, 0.50)
	said.P99Ms = percentile(all, 0.99)
	return said
}

// percentile is the smallest time that the fraction of all do not exceed, in milliseconds.
func percentile(ascending []time.Duration, fraction float64) float64 {
	if len(ascending) == 0 {
		return 0
	}
	rank := int(math.Ceil(fraction*float64(len(ascending)))) - 1
	return ascending[rank].Seconds() * 1e3
}
