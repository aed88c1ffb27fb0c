package dev.skep.restore;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;

/** Just enough of the class file format, JVMS chapter 4, to make a method call another one first. */
final class ClassFile {
    private static final int UTF8 = 1, INTEGER = 3, FLOAT = 4, LONG = 5, DOUBLE = 6, CLASS = 7, STRING = 8,
            METHOD_REF = 10, NAME_AND_TYPE = 12, METHOD_HANDLE = 15, METHOD_TYPE = 16, MODULE = 19, PACKAGE = 20;
    private static final int INVOKESTATIC = 0xb8, NOP = 0x00;
    /** Of the inserted instructions. A multiple of four: switches stay aligned. */
    private static final int INSERTED = 4;

    private final DataInputStream in;
    private final ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    private final DataOutputStream out = new DataOutputStream(bytes);
    private String[] utf8;

    private ClassFile(byte[] file) {
        in = new DataInputStream(new ByteArrayInputStream(file));
    }

    /**
     * Returns the class file with a call of a static method, without arguments and result, at the beginning of one of
     * its methods.
     */
    static byte[] callFirst(byte[] file, String method, String descriptor, String targetClass, String target)
            throws IOException {
        return new ClassFile(file).rewrite(method, descriptor, targetClass, target);
    }

    private byte[] rewrite(String method, String descriptor, String targetClass, String target) throws IOException {
        copy(8); // magic, version
        int call = constants(targetClass, target);
        copy(6); // access, this, super
        copy(2 * copyShort()); // interfaces
        for (int n = copyShort(); n > 0; n--) { // fields
            copy(6);
            attributes();
        }
        boolean found = false;
        for (int n = copyShort(); n > 0; n--) { // methods
            copy(2); // access
            boolean it = utf8[copyShort()].equals(method) & utf8[copyShort()].equals(descriptor);
            for (int m = copyShort(); m > 0; m--) {
                int name = copyShort();
                if (it && utf8[name].equals("Code")) {
                    code(call);
                    found = true;
                } else {
                    copy(copyInt());
                }
            }
        }
        if (!found) {
            throw new IOException("there is no method " + method + descriptor);
        }
        in.transferTo(out);
        return bytes.toByteArray();
    }

    /** Copies the constants, adds those of the call, and returns the index of its method. */
    private int constants(String targetClass, String target) throws IOException {
        int count = in.readUnsignedShort();
        out.writeShort(count + 6);
        utf8 = new String[count];
        for (int i = 1; i < count; i++) {
            int tag = in.readUnsignedByte();
            out.writeByte(tag);
            switch (tag) {
                case UTF8 -> {
                    utf8[i] = in.readUTF();
                    out.writeUTF(utf8[i]);
                }
                case LONG, DOUBLE -> {
                    copy(8);
                    i++; // takes two places
                }
                case CLASS, STRING, METHOD_TYPE, MODULE, PACKAGE -> copy(2);
                case METHOD_HANDLE -> copy(3);
                default -> copy(4); // INTEGER, FLOAT, and pairs of indices
            }
        }
        constant(UTF8).writeUTF(targetClass); // count
        constant(CLASS).writeShort(count); // count + 1
        constant(UTF8).writeUTF(target); // count + 2
        constant(UTF8).writeUTF("()V"); // count + 3
        constant(NAME_AND_TYPE).writeInt(count + 2 << 16 | count + 3); // count + 4
        constant(METHOD_REF).writeInt(count + 1 << 16 | count + 4); // count + 5
        return count + 5;
    }

    private DataOutputStream constant(int tag) throws IOException {
        out.writeByte(tag);
        return out;
    }

    /** Copies a Code attribute, with the call at its beginning and without tables that only debuggers need. */
    private void code(int call) throws IOException {
        in.readInt(); // length
        byte[] stack = in.readNBytes(4); // max_stack, max_locals
        byte[] code = in.readNBytes(in.readInt());
        int exceptions = in.readUnsignedShort();
        out.writeInt(4 + 4 + INSERTED + code.length + 2 + 8 * exceptions + 2);
        out.write(stack);
        out.writeInt(INSERTED + code.length);
        out.writeByte(INVOKESTATIC);
        out.writeShort(call);
        out.writeByte(NOP);
        out.write(code);
        out.writeShort(exceptions);
        for (int i = 0; i < exceptions; i++) {
            for (int j = 0; j < 3; j++) { // start, end, handler
                out.writeShort(INSERTED + in.readUnsignedShort());
            }
            copy(2); // type
        }
        for (int n = in.readUnsignedShort(); n > 0; n--) {
            String name = utf8[in.readUnsignedShort()];
            if (name.equals("StackMapTable")) {
                throw new IOException("the method has branches");
            }
            in.skipNBytes(in.readInt());
        }
        out.writeShort(0);
    }

    private void attributes() throws IOException {
        for (int n = copyShort(); n > 0; n--) {
            copy(2);
            copy(copyInt());
        }
    }

    private void copy(int n) throws IOException {
        byte[] b = in.readNBytes(n);
        if (b.length != n) {
            throw new IOException("the class file is too short");
        }
        out.write(b);
    }

    private int copyShort() throws IOException {
        int n = in.readUnsignedShort();
        out.writeShort(n);
        return n;
    }

    private int copyInt() throws IOException {
        int n = in.readInt();
        if (n < 0) {
            throw new IOException("a length is too large");
        }
        out.writeInt(n);
        return n;
    }
}
