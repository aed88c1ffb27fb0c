package dev.skep.restore;

import java.io.FileInputStream;
import java.io.IOException;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.lang.reflect.Field;
import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.Random;
import java.util.SplittableRandom;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.atomic.AtomicLong;

/**
 * After a restore: random numbers of this process's own.
 *
 * <p>A process that was restored from a snapshot goes on with the generators of all its siblings. SecureRandom, and
 * all that is made with it (UUIDs, keys, TLS, names of temporary files), asks the kernel each time, as the image
 * configures it. This class seeds the others again: Math.random, ThreadLocalRandom, Collections.shuffle, and what new
 * Random and new SplittableRandom start from. Objects that the program made before stay as they are.
 *
 * <p>It notices a restore by the machine ID, of which each restored sandbox has its own before it gets any work, and
 * looks at that as often as a connection is accepted: connections do not survive a snapshot, so the first request
 * after a restore comes over a new one.
 */
public final class Restore {
    private static final String MACHINE_ID = "/etc/machine-id";

    private static volatile byte[] last;

    private Restore() {}

    static void start() {
        last = machine();
        // The first time, Java loads and links what it takes: many times the
        // work itself. Now it is beside the program's start, and in snapshots.
        new Rehearsal().start();
    }

    /** Not a lambda: the first in a program takes long. */
    private static final class Rehearsal extends Thread {
        Rehearsal() {
            super("skep-restore");
            setDaemon(true);
        }

        @Override
        public void run() {
            seed();
        }
    }

    /** Seeds everything again if this process was restored since the last call. */
    public static void check() {
        byte[] now = machine();
        if (Arrays.equals(now, last)) {
            return;
        }
        seed();
        last = now;
    }

    private static void seed() {
        try {
            reseed();
        } catch (Throwable e) { // a JDK of another version must not fail a request
            System.err.println("skep: clones share the state of java.util.Random's kin: " + e);
        }
    }

    private static byte[] machine() {
        try (FileInputStream in = new FileInputStream(MACHINE_ID)) {
            return in.readNBytes(64);
        } catch (IOException e) {
            return new byte[0];
        }
    }

    private static synchronized void reseed() throws Exception {
        long[] seeds = fromKernel(5);
        counter(Random.class, "seedUniquifier").set(seeds[0]);
        counter(ThreadLocalRandom.class, "seeder").set(seeds[1]);
        counter(SplittableRandom.class, "defaultGen").set(seeds[2]);
        Class<?> holder = Class.forName("java.lang.Math$RandomNumberGeneratorHolder");
        ((Random) field(holder, "randomNumberGenerator").get(null)).setSeed(seeds[3]);
        Random shuffle = (Random) field(java.util.Collections.class, "r").get(null);
        if (shuffle != null) {
            shuffle.setSeed(seeds[4]);
        }
        threads();
    }

    /** ThreadLocalRandom's state is in the threads. */
    private static void threads() throws Exception {
        VarHandle seed = MethodHandles.privateLookupIn(Thread.class, MethodHandles.lookup())
                .findVarHandle(Thread.class, "threadLocalRandomSeed", long.class);
        ThreadGroup root = Thread.currentThread().getThreadGroup();
        while (root.getParent() != null) {
            root = root.getParent();
        }
        Thread[] threads;
        int n;
        do {
            threads = new Thread[2 * root.activeCount() + 16];
            n = root.enumerate(threads);
        } while (n == threads.length);
        long[] seeds = fromKernel(n);
        for (int i = 0; i < n; i++) {
            seed.setOpaque(threads[i], seeds[i]);
        }
    }

    private static AtomicLong counter(Class<?> c, String name) throws Exception {
        return (AtomicLong) field(c, name).get(null);
    }

    private static Field field(Class<?> c, String name) throws Exception {
        Field f = c.getDeclaredField(name);
        f.setAccessible(true);
        return f;
    }

    private static long[] fromKernel(int n) throws IOException {
        byte[] b = new byte[8 * n];
        try (FileInputStream in = new FileInputStream("/dev/urandom")) {
            if (in.readNBytes(b, 0, b.length) != b.length) {
                throw new IOException("/dev/urandom is short");
            }
        }
        long[] seeds = new long[n];
        ByteBuffer.wrap(b).asLongBuffer().get(seeds);
        return seeds;
    }
}
