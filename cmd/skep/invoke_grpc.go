package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
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
	method := strings.TrimPrefix(f.grpc, "/")
	if err := findMethod(source, method); err != nil {
		return err
	}
	handler := &grpcurl.DefaultEventHandler{Out: out, Formatter: format}
	if err := grpcurl.InvokeRPC(ctx, source, conn, method, f.headers, handler, parse.Next); err != nil {
		return fmt.Errorf("--grpc %s: %w", f.grpc, err)
	}
	if handler.Status.Code() != codes.OK {
		return fmt.Errorf("the response is %s: %s", handler.Status.Code(), handler.Status.Message())
	}
	return nil
}

// findMethod makes sure that the function has a method "package.Service/Method",
// and says which it has if not.
func findMethod(source grpcurl.DescriptorSource, method string) error {
	service, name, ok := strings.Cut(method, "/")
	if !ok {
		return coded(exitUsage, fmt.Errorf("--grpc: %q is not of the form package.Service/Method", method))
	}
	methods, err := grpcurl.ListMethods(source, service)
	if grpcreflect.IsElementNotFoundError(err) {
		services, err := grpcurl.ListServices(source)
		if err != nil {
			return fmt.Errorf("--grpc %s: %w", method, err)
		}
		return coded(exitUsage, fmt.Errorf("--grpc: the function has no service %q; it has %s", service, strings.Join(services, ", ")))
	}
	if err != nil {
		return fmt.Errorf("--grpc %s: asking for the method by server reflection, which the function must offer: %w", method, err)
	}
	if !slices.Contains(methods, service+"."+name) {
		return coded(exitUsage, fmt.Errorf("--grpc: service %s has no method %q; it has %s", service, name, strings.Join(methods, ", ")))
	}
	return nil
}
