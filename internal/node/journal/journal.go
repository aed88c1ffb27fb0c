// Package journal records what a node has made on its machine, durably and
// before it is made, so that a node that was killed removes exactly what is
// its own when it starts again.
package journal

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/url"
	"time"

	_ "modernc.org/sqlite" // the driver
)

// Journal is a set of records in a SQLite file. It is safe for concurrent use.
type Journal struct{ db *sql.DB }

// Record is one resource.
type Record struct {
	Kind string
	ID   string
	Data json.RawMessage
	At   time.Time
}

// Write-ahead logging with synchronous=NORMAL survives the death of the
// process at any moment. After a power failure the last records may be
// missing, but so are the processes, mounts and namespaces they speak of.
const pragmas = "_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_pragma=busy_timeout(5000)"

// Open opens the journal in a file, which it makes if need be.
func Open(ctx context.Context, path string) (*Journal, error) {
	dsn := (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: pragmas}).String()
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("open journal %s: %w", path, err)
	}
	db.SetMaxOpenConns(1) // one writer; reads are few
	const schema = `CREATE TABLE IF NOT EXISTS resource (
		kind TEXT NOT NULL, id TEXT NOT NULL, data BLOB NOT NULL, at INTEGER NOT NULL,
		PRIMARY KEY (kind, id)) WITHOUT ROWID;
	CREATE TABLE IF NOT EXISTS identity (
		one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL);`
	if _, err := db.ExecContext(ctx, schema); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("open journal %s: %w", path, err)
	}
	return &Journal{db: db}, nil
}

// Close closes the file.
func (j *Journal) Close() error { return j.db.Close() }

// Identity returns the ID kept in the journal. The first call ever stores
// the one that fresh returns.
func (j *Journal) Identity(ctx context.Context, fresh func() string) (string, error) {
	if _, err := j.db.ExecContext(ctx, `INSERT OR IGNORE INTO identity VALUES (1, ?)`, fresh()); err != nil {
		return "", fmt.Errorf("journal: store identity: %w", err)
	}
	var id string
	if err := j.db.QueryRowContext(ctx, `SELECT id FROM identity`).Scan(&id); err != nil {
		return "", fmt.Errorf("journal: read identity: %w", err)
	}
	return id, nil
}

// Put records a resource that is about to be made. When it returns nil the
// record survives the process.
func (j *Journal) Put(ctx context.Context, kind, id string, data any) error {
	b, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("journal: encode %s %s: %w", kind, id, err)
	}
	_, err = j.db.ExecContext(ctx, `INSERT OR REPLACE INTO resource VALUES (?, ?, ?, ?)`,
		kind, id, b, time.Now().UnixNano())
	if err != nil {
		return fmt.Errorf("journal: record %s %s: %w", kind, id, err)
	}
	return nil
}

// Delete forgets a resource that is gone. An unknown one is no error.
func (j *Journal) Delete(ctx context.Context, kind, id string) error {
	if _, err := j.db.ExecContext(ctx, `DELETE FROM resource WHERE kind = ? AND id = ?`, kind, id); err != nil {
		return fmt.Errorf("journal: forget %s %s: %w", kind, id, err)
	}
	return nil
}

// List returns the records of a kind, oldest first.
func (j *Journal) List(ctx context.Context, kind string) ([]Record, error) {
	rows, err := j.db.QueryContext(ctx, `SELECT id, data, at FROM resource WHERE kind = ? ORDER BY at, id`, kind)
	if err != nil {
		return nil, fmt.Errorf("journal: list %s: %w", kind, err)
	}
	defer rows.Close()
	var out []Record
	for rows.Next() {
		r := Record{Kind: kind}
		var data []byte
		var at int64
		if err := rows.Scan(&r.ID, &data, &at); err != nil {
			return nil, fmt.Errorf("journal: list %s: %w", kind, err)
		}
		r.Data, r.At = data, time.Unix(0, at)
		out = append(out, r)
	}
	return out, rows.Err()
}
