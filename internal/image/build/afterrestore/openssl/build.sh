#!/bin/sh
# Remakes the providers that images get. It needs gcc for both architectures,
# one of Debian's gcc-aarch64-linux-gnu and gcc-x86-64-linux-gnu.
set -eu
cd "$(dirname "$0")"
for arch in amd64:x86_64 arm64:aarch64; do
	"${arch#*:}-linux-gnu-gcc" -std=gnu11 -O2 -Wall -Wextra -Werror -fPIC -fvisibility=hidden -ffreestanding \
		-fno-stack-protector -fno-asynchronous-unwind-tables -fno-unwind-tables -shared -nostdlib -s -Wl,--build-id=none \
		-Wl,-z,noseparate-code -Wl,-z,norelro -Wl,-z,now -Wl,-z,noexecstack -Wl,--hash-style=gnu \
		-o "skeprand-${arch%:*}.so" skeprand.c
done
