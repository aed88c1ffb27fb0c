'use strict';
// After a restore: random numbers of this process's own.
//
// A process that was restored from a snapshot goes on with the generators of
// all its siblings. The image has node load this file first (--require). What
// OpenSSL makes comes from the kernel each time, as this image configures it
// (TLS, key pairs, randomBytes); here are the caches that Node.js keeps on top
// of it, and V8's Math.random, which cannot be seeded again and is replaced.
//
// A restore is noticed by the machine ID, of which each restored sandbox has
// its own before it gets any work. It is looked at as often as a connection is
// accepted: connections do not survive a snapshot, so the first request after
// a restore comes over a new one. Programs can act too:
// process.on('skep:restored', () => ...).

const fs = require('fs');
const { channel } = require('diagnostics_channel');

const machineID = '/etc/machine-id';

function machine() {
  try {
    return fs.readFileSync(machineID, 'latin1');
  } catch {
    return '';
  }
}

function fromKernel(buffer) {
  let fd;
  try {
    fd = fs.openSync('/dev/urandom', 'r');
  } catch {
    require('crypto').randomFillSync(buffer); // slower to load
    return;
  }
  try {
    if (fs.readSync(fd, buffer, 0, buffer.length, null) !== buffer.length) throw new Error('/dev/urandom is short');
  } finally {
    fs.closeSync(fd);
  }
}

// xoshiro128** 1.1 (Blackman and Vigna, https://prng.di.unimi.it/, public
// domain): of the quality of V8's own generator, and as fast without 64-bit
// integers.
let a = 0, b = 0, c = 0, d = 0;

function seed() {
  const s = Buffer.alloc(16);
  fromKernel(s);
  a = s.readInt32LE(0);
  b = s.readInt32LE(4);
  c = s.readInt32LE(8);
  d = s.readInt32LE(12) | 1; // not all zeros
}

function next() {
  let r = Math.imul(b, 5);
  r = Math.imul((r << 7) | (r >>> 25), 9);
  const t = b << 9;
  c ^= a;
  d ^= b;
  b ^= c;
  a ^= d;
  c ^= t;
  d = (d << 11) | (d >>> 21);
  return r;
}

// The property stays as it was: writable, configurable, not enumerable.
Math.random = { random: () => ((next() >>> 5) * 0x4000000 + (next() >>> 6)) / 0x20000000000000 }.random;

let last = machine();

function check() {
  const now = machine();
  if (now === last) return;
  last = now;
  seed();
  try {
    dropCaches();
  } catch (e) {
    if (e.code !== 'ERR_NO_CRYPTO') throw e; // a Node.js without OpenSSL
  }
  process.emit('skep:restored');
}

// randomUUID and randomInt are answered from bytes that were fetched ahead. What
// there is of them is used up. Sizes: lib/internal/crypto/random.js.
const uuidsAhead = 128;
const intsAhead = 1024;

function dropCaches() {
  const loaded = process.moduleLoadList;
  if (Array.isArray(loaded) && !loaded.includes('NativeModule internal/crypto/random')) return;
  const { randomUUID, randomInt } = require('crypto');
  for (let i = 0; i < uuidsAhead; i++) randomUUID();
  for (let i = 0; i < intsAhead; i++) randomInt(1);
}

seed();
channel('net.server.socket').subscribe(check);
