package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/fullstorydev/grpcurl"
	"github.com/jhump/protoreflect/grpcreflect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
)

// invokeGRPC calls a method whose types the function tells by reflection.
func (f *invokeFlags) invokeGRPC(ctx context.Context, gateway, host string, body []byte, out io.Writer) error {
	conn, err := grpc.NewClient("passthrough:///"+gateway,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(host))
	if err != nil {
		return fmt.Errorf("invoke: %w", err)
	}
	defer conn.Close()
	reflection := grpcreflect.NewClientAuto(ctx, conn)
	defer reflection.Reset()
	source := grpcurl.DescriptorSourceFromServer(ctx, reflection)
	parse, format, err := grpcurl.RequestParserAndFormatter(grpcurl.FormatJSON, source, bytes.NewReader(body), grpcurl.FormatOptions{})
	if err != nil {
		return fmt.Errorf("--data: %w", err)
	}
	handler := &grpcurl.DefaultEventHandler{Out: out, Formatter: format}
	err = grpcurl.InvokeRPC(ctx, source, conn, strings.TrimPrefix(f.grpc, "/"), f.headers, handler, parse.Next)
	if grpcreflect.IsElementNotFoundError(err) {
		return coded(exitUsage, fmt.Errorf("--grpc: %w", err))
	}
	if err != nil {
		return fmt.Errorf("--grpc %s: %w (the function must offer server reflection)", f.grpc, err)
	}
	if handler.Status.Code() != codes.OK {
		return fmt.Errorf("the response is %s: %s", handler.Status.Code(), handler.Status.Message())
	}
	return nil
}
