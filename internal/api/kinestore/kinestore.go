// Package kinestore is the API server's storage: kine over one SQLite file,
// spoken to as etcd over a unix socket. Only kine's SQLite driver is linked.
package kinestore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/drivers/generic"
	"github.com/k3s-io/kine/pkg/drivers/sqlite"
	"github.com/k3s-io/kine/pkg/server"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

const (
	databaseName = "api.db"
	socketName   = "api.sock"
	lockName     = "api.lock"

	// Largest message a client may send; the API server bounds request
	// bodies below it.
	maxRequestBytes = 4 << 20
	// Lists are answered in one message.
	maxResponseBytes = 512 << 20

	// How often history is cut off, and how many revisions watchers may lag.
	compactInterval  = 5 * time.Minute
	compactMinRetain = 1000

	stopTimeout = 2 * time.Second

	// The etcd release that clients are told of; they ask for what it can do.
	emulatedEtcd = "3.5.13"
)

// The parameters of the database: a write is on disk before it is
// acknowledged (synchronous=FULL), so that neither a kill nor a power cut
// loses it; writes to the API are rare. Vacuuming at every start would cost
// time and gain little: freed pages are used again.
const databaseParams = "_journal_mode=WAL&_busy_timeout=30000&_synchronous=FULL&_txlock=immediate&_kine_disable_startup_vacuum"

// ErrLocked says that another process serves the same folder.
var ErrLocked = errors.New("already in use by another process")

// Store is a running kine. Close frees everything it holds.
type Store struct {
	endpoint string
	lock     *os.File
	dir      *os.File
	grpc     *grpc.Server
	cancel   context.CancelFunc
	work     *sync.WaitGroup
	closing  sync.Once
}

// Open starts kine on the folder dir, which must exist and be private to the
// user. It takes a lock on it (ErrLocked) that dies with the process.
func Open(ctx context.Context, dir string) (_ *Store, err error) {
	s := &Store{work: &sync.WaitGroup{}}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()

	if s.lock, err = lock(filepath.Join(dir, lockName)); err != nil {
		return nil, err
	}
	// The folder may lie deeper than a socket address is long (108 bytes), so
	// the socket is named through the folder's descriptor.
	if s.dir, err = os.Open(dir); err != nil {
		return nil, fmt.Errorf("open API folder: %w", err)
	}
	database := filepath.Join(dir, databaseName)
	if err := private(database); err != nil {
		return nil, err
	}

	// kine outlives the caller's context: Close ends it, in order.
	var run context.Context
	run, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	_, backend, err := sqlite.New(run, s.work, &drivers.Config{
		DataSourceName:        database + "?" + databaseParams,
		ConnectionPoolConfig:  generic.ConnectionPoolConfig{MaxIdle: 4, MaxOpen: 8, MaxIdleTime: 2 * time.Minute},
		CompactInterval:       compactInterval,
		CompactIntervalJitter: 5,
		CompactTimeout:        10 * time.Second,
		CompactMinRetain:      compactMinRetain,
		CompactBatchSize:      1000,
		PollBatchSize:         500,
		PollInterval:          time.Second,
	})
	if err != nil {
		return nil, fmt.Errorf("open API database %s: %w", database, err)
	}
	if err := backend.Start(run); err != nil {
		return nil, fmt.Errorf("start API database %s: %w", database, err)
	}

	socket := fmt.Sprintf("/proc/self/fd/%d/%s", s.dir.Fd(), socketName)
	listener, err := listen(ctx, socket)
	if err != nil {
		return nil, err
	}
	s.grpc = grpc.NewServer(grpc.MaxRecvMsgSize(maxRequestBytes), grpc.MaxSendMsgSize(maxResponseBytes),
		// The API server's clients ping twice a minute; by default gRPC hangs
		// up on those that ping more often than every five.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}))
	server.New(backend, "unix", 5*time.Second, emulatedEtcd).Register(s.grpc)
	s.work.Go(func() { _ = s.grpc.Serve(listener) })
	s.endpoint = "unix://" + socket
	return s, nil
}

// Endpoint is the address for an etcd client of this process.
func (s *Store) Endpoint() string { return s.endpoint }

// Close stops kine and closes the database. Its clients must be closed
// before, or they are cut off after two seconds.
func (s *Store) Close() {
	s.closing.Do(func() {
		if s.grpc != nil {
			cutOff := time.AfterFunc(stopTimeout, s.grpc.Stop)
			s.grpc.GracefulStop()
			cutOff.Stop()
		}
		if s.cancel != nil {
			s.cancel()
		}
		s.work.Wait()
		if s.dir != nil {
			s.dir.Close()
		}
		if s.lock != nil {
			s.lock.Close()
		}
	})
}

func lock(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open API lock: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("API folder %s: %w: stop the other one or choose another folder", filepath.Dir(path), ErrLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return file, nil
}

// private makes the file exist readable by its owner alone, before SQLite
// would make it under the umask; its -wal and -shm take its mode.
func private(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("create API database: %w", err)
	}
	defer file.Close()
	if err := file.Chmod(0o600); err != nil {
		return fmt.Errorf("protect API database: %w", err)
	}
	return nil
}

func listen(ctx context.Context, socket string) (net.Listener, error) {
	// The lock is ours: a socket found here is what a killed process left.
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove stale API storage socket: %w", err)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("listen on API storage socket: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		listener.Close()
		return nil, fmt.Errorf("protect API storage socket: %w", err)
	}
	return listener, nil
}
