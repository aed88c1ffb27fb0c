// Command hello is an app for the Go runtime of SnapFaaS's tools: it speaks
// with the runtime over standard input and output, in JSON messages behind
// their length.
package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log"
	"os"
)

type message struct {
	Type    string `json:"type"`
	Payload any    `json:"payload,omitempty"`
	Error   string `json:"error,omitempty"`
}

// handle says hello; obj is what the request's JSON line held.
func handle(obj any) (any, error) {
	name := any("world")
	if m, ok := obj.(map[string]any); ok && m["name"] != nil {
		name = m["name"]
	}
	s, ok := name.(string)
	if !ok {
		return nil, errors.New("name: not a string")
	}
	return map[string]string{"message": "hello, " + s}, nil
}

func main() {
	// Whatever takes long to set up comes before this: it is in the snapshot.
	if err := send(message{Type: "app-ready"}); err != nil {
		log.Fatal(err)
	}
	for {
		request, err := receive()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		reply := message{Type: "response"}
		if reply.Payload, err = handle(request.Payload); err != nil {
			reply = message{Type: "error", Error: err.Error()}
		}
		if err := send(reply); err != nil {
			log.Fatal(err)
		}
	}
}

func send(m message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func receive() (m message, err error) {
	var size uint32
	if err := binary.Read(os.Stdin, binary.BigEndian, &size); err != nil {
		return m, err
	}
	b := make([]byte, size) // the runtime bounds it
	if _, err := io.ReadFull(os.Stdin, b); err != nil {
		return m, err
	}
	return m, json.Unmarshal(b, &m)
}
