//! A tool server for AI agents: statistics of tables, over standard input and output.
//!
//!     table-stats [DIRECTORY]      files below DIRECTORY, or below the current one

const std = @import("std");
const Io = std.Io;
const mcp = @import("mcp.zig");

const most_line = 1 << 20;

pub fn main(init: std.process.Init) !void {
    const io = init.io;
    const arguments = try init.minimal.args.toSlice(init.arena.allocator());
    const place = if (arguments.len > 1) arguments[1] else ".";
    const root = try Io.Dir.cwd().openDir(io, place, .{});
    defer root.close(io);
    const server: mcp.Server = .{ .io = io, .gpa = init.gpa, .root = root };

    var input = Io.File.stdin().readerStreaming(io, try init.arena.allocator().alloc(u8, most_line));
    var buffer: [16 << 10]u8 = undefined;
    var output = Io.File.stdout().writerStreaming(io, &buffer);
    while (try input.interface.takeDelimiter('\n')) |line| {
        if (line.len == 0) continue;
        try server.answer(line, &output.interface);
        try output.interface.flush();
    }
}

test {
    _ = mcp;
    _ = @import("table.zig");
}
