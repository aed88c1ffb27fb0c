package dev.skep.restore;

import java.lang.instrument.ClassFileTransformer;
import java.lang.instrument.Instrumentation;
import java.security.ProtectionDomain;
import java.util.Map;
import java.util.Set;

/**
 * Gets {@link Restore#check} called for each accepted connection: all of the JDK's server sockets ask for a new
 * connection's local address. Loaded by -javaagent. What fails here is said, and does not keep the program from
 * running.
 */
public final class Agent {
    private static final String CLASS = "sun/nio/ch/Net";
    private static final String METHOD = "localAddress";
    private static final String DESCRIPTOR = "(Ljava/io/FileDescriptor;)Ljava/net/InetSocketAddress;";

    private Agent() {}

    /** Called by the JVM before main. */
    public static void premain(String args, Instrumentation inst) {
        try {
            Module us = Restore.class.getModule();
            inst.redefineModule(Object.class.getModule(), Set.of(us), Map.of(),
                    Map.of("java.lang", Set.of(us), "java.util", Set.of(us), "java.util.concurrent", Set.of(us)),
                    Set.of(), Map.of());
            Restore.start();
            patch(inst);
        } catch (Throwable e) {
            System.err.println("skep: clones will share the state of java.util.Random's kin: " + e);
        }
    }

    private static void patch(Instrumentation inst) throws Exception {
        Exception[] failed = new Exception[1];
        boolean[] done = new boolean[1];
        ClassFileTransformer t = new ClassFileTransformer() {
            @Override
            public byte[] transform(Module m, ClassLoader l, String name, Class<?> c, ProtectionDomain d, byte[] file) {
                if (!CLASS.equals(name)) {
                    return null;
                }
                try {
                    byte[] patched = ClassFile.callFirst(file, METHOD, DESCRIPTOR,
                            Restore.class.getName().replace('.', '/'), "check");
                    done[0] = true;
                    return patched;
                } catch (Exception e) {
                    failed[0] = e;
                    return null;
                }
            }
        };
        inst.addTransformer(t, true);
        try {
            inst.retransformClasses(Class.forName(CLASS.replace('/', '.'), false, null));
        } finally {
            inst.removeTransformer(t); // or every class that is loaded would come by
        }
        if (failed[0] != null) {
            throw failed[0];
        }
        if (!done[0]) {
            throw new IllegalStateException("this JVM does not let " + CLASS + " be changed");
        }
    }
}
