//! The Model Context Protocol over lines of JSON (https://modelcontextprotocol.io, version 2024-11-05): one tool.

const std = @import("std");
const Io = std.Io;
const Allocator = std.mem.Allocator;
const Value = std.json.Value;
const Stringify = std.json.Stringify;
const Table = @import("table.zig").Table;
const Options = @import("table.zig").Options;

pub const protocol = "2024-11-05";
const most_file = 64 << 20;
const buffer_size = 64 << 10;

const tools =
    \\{"tools":[{"name":"table_stats","description":"Statistics of a CSV file or a log in columns: rows, and for each column how many values, empty ones and numbers it has, min, max, mean, p50, p90, p99, distinct and most common values. Fast, also on files too large to read.","inputSchema":{"type":"object","properties":{"path":{"type":"string","description":"File, relative to the workspace"},"columns":{"type":"array","items":{"type":"string"},"description":"Names of columns (numbers from 1 without a header); all if not given"},"delimiter":{"type":"string","description":"One character; a blank for logs (any number of blanks or tabs). Default: ,"},"header":{"type":"boolean","description":"Whether the first row has the names. Default: true"},"top":{"type":"integer","minimum":0,"maximum":50,"description":"How many of the most common values to tell. Default: 5"}},"required":["path"]}}]}
;

pub const Server = struct {
    io: Io,
    gpa: Allocator,
    /// Files below this directory only.
    root: Io.Dir,

    /// Answers one line; writes nothing for a notification.
    pub fn answer(server: Server, line: []const u8, writer: *Io.Writer) !void {
        var arena_state: std.heap.ArenaAllocator = .init(server.gpa);
        defer arena_state.deinit();
        const arena = arena_state.allocator();
        const message = std.json.parseFromSliceLeaky(Value, arena, line, .{}) catch
            return fail(writer, .null, -32700, "this is not JSON");
        const id = member(message, "id") orelse return;
        const method = text(member(message, "method")) orelse return fail(writer, id, -32600, "no method");
        const parameters = member(message, "params") orelse Value.null;
        if (std.mem.eql(u8, method, "initialize")) {
            try begin(writer, id);
            try writer.writeAll("{\"protocolVersion\":\"" ++ protocol ++ "\",\"capabilities\":{\"tools\":{}}," ++
                "\"serverInfo\":{\"name\":\"table-stats\",\"version\":\"1.0.0\"}}}\n");
        } else if (std.mem.eql(u8, method, "ping")) {
            try begin(writer, id);
            try writer.writeAll("{}}\n");
        } else if (std.mem.eql(u8, method, "tools/list")) {
            try begin(writer, id);
            try writer.writeAll(tools ++ "}\n");
        } else if (std.mem.eql(u8, method, "tools/call")) {
            if (!std.mem.eql(u8, text(member(parameters, "name")) orelse "", "table_stats"))
                return fail(writer, id, -32602, "there is no such tool");
            try server.call(arena, id, member(parameters, "arguments") orelse .null, writer);
        } else try fail(writer, id, -32601, "there is no such method");
    }

    fn call(server: Server, arena: Allocator, id: Value, arguments: Value, writer: *Io.Writer) !void {
        var report: Io.Writer.Allocating = .init(arena);
        const problem = server.describe(arena, arguments, &report.writer) catch |err| @errorName(err);
        try begin(writer, id);
        try writer.writeAll("{\"content\":[{\"type\":\"text\",\"text\":");
        try Stringify.value(problem orelse report.written(), .{}, writer);
        try writer.print("}}],\"isError\":{}}}}}\n", .{problem != null});
    }

    /// Writes the report, or returns what is wrong, in words for the model.
    fn describe(server: Server, arena: Allocator, arguments: Value, writer: *Io.Writer) !?[]const u8 {
        var options: Options = .{};
        const path = text(member(arguments, "path")) orelse return "path is missing";
        if (!isBelow(path)) return "path must be relative to the workspace, without ..";
        if (member(arguments, "delimiter")) |given| {
            const delimiter = text(given) orelse "";
            if (delimiter.len != 1 or delimiter[0] == '"' or delimiter[0] == '\n') return "delimiter must be one character";
            options.delimiter = delimiter[0];
        }
        if (member(arguments, "header")) |given| switch (given) {
            .bool => |header| options.header = header,
            else => return "header must be true or false",
        };
        if (member(arguments, "top")) |given| switch (given) {
            .integer => |top| options.top = std.math.cast(u6, top) orelse return "top must be from 0 to 50",
            else => return "top must be from 0 to 50",
        };
        if (options.top > 50) return "top must be from 0 to 50";
        if (member(arguments, "columns")) |given| {
            const list = if (given == .array) given.array.items else return "columns must be a list of names";
            const columns = try arena.alloc([]const u8, list.len);
            for (columns, list) |*column, value| column.* = text(value) orelse return "columns must be a list of names";
            options.columns = columns;
        }
        const file = server.root.openFile(server.io, path, .{}) catch |err| return switch (err) {
            error.FileNotFound => "there is no such file",
            else => "this file cannot be opened",
        };
        defer file.close(server.io);
        const found = file.stat(server.io) catch return "this file cannot be read";
        if (found.kind != .file) return "this is no file";
        if (!server.holds(file)) return "this is a link that leads out of the workspace";
        if (found.size > most_file) return "this file is larger than 64 MiB";
        var reader = file.readerStreaming(server.io, try arena.alloc(u8, buffer_size));
        var table: Table = .init(arena, options);
        table.read(&reader.interface) catch |err| return switch (err) {
            error.NoSuchColumn => "there is no such column; without columns all are told",
            error.TooManyColumns => "it has more than 256 columns: is the delimiter right?",
            error.TooManyNumbers => "it has more than 1000000 numbers: name fewer columns",
            error.CellTooLong => "a cell is longer than 4096 bytes: is this a table?",
            error.UnclosedQuote => "a quote is not closed",
            error.OutOfMemory => "there is not enough memory for all columns: name fewer",
            else => "this file cannot be read",
        };
        try table.write(writer);
        return null;
    }

    /// Whether the open file, wherever links have led to it, is below the root.
    fn holds(server: Server, file: Io.File) bool {
        var buffers: [2][Io.Dir.max_path_bytes]u8 = undefined;
        const root = buffers[0][0 .. server.root.realPath(server.io, &buffers[0]) catch return false];
        const place = buffers[1][0 .. file.realPath(server.io, &buffers[1]) catch return false];
        const below = std.mem.cutPrefix(u8, place, root) orelse return false;
        return root.len == 1 or std.mem.startsWith(u8, below, "/");
    }
};

fn isBelow(path: []const u8) bool {
    if (path.len == 0 or path[0] == '/' or std.mem.findScalar(u8, path, 0) != null) return false;
    var parts = std.mem.splitScalar(u8, path, '/');
    while (parts.next()) |part| if (std.mem.eql(u8, part, "..")) return false;
    return true;
}

fn member(value: Value, name: []const u8) ?Value {
    return if (value == .object) value.object.get(name) else null;
}

fn text(value: ?Value) ?[]const u8 {
    const given = value orelse return null;
    return if (given == .string) given.string else null;
}

fn begin(writer: *Io.Writer, id: Value) !void {
    try writer.writeAll("{\"jsonrpc\":\"2.0\",\"id\":");
    try Stringify.value(id, .{}, writer);
    try writer.writeAll(",\"result\":");
}

fn fail(writer: *Io.Writer, id: Value, code: i32, problem: []const u8) !void {
    try writer.writeAll("{\"jsonrpc\":\"2.0\",\"id\":");
    try Stringify.value(id, .{}, writer);
    try writer.print(",\"error\":{{\"code\":{d},\"message\":\"{s}\"}}}}\n", .{ code, problem });
}

// --- tests -----------------------------------------------------------------------------------------

fn expectAnswer(line: []const u8, expected: []const u8) !void {
    var room = std.testing.tmpDir(.{});
    defer room.cleanup();
    try room.dir.writeFile(std.testing.io, .{ .sub_path = "prices.csv", .data = "price\n2\n4\n" });
    try room.dir.symLink(std.testing.io, "/etc/passwd", "link", .{});
    var out: Io.Writer.Allocating = .init(std.testing.allocator);
    defer out.deinit();
    const server: Server = .{ .io = std.testing.io, .gpa = std.testing.allocator, .root = room.dir };
    try server.answer(line, &out.writer);
    try std.testing.expect(std.mem.find(u8, out.written(), expected) != null or
        (expected.len == 0 and out.written().len == 0));
    if (out.written().len > 0) try std.testing.expect(try std.json.validate(std.testing.allocator, out.written()));
}

test "it introduces itself, and says nothing to notifications" {
    try expectAnswer("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"initialize\",\"params\":{}}", protocol);
    try expectAnswer("{\"jsonrpc\":\"2.0\",\"id\":\"x\",\"method\":\"ping\"}", "\"id\":\"x\",\"result\":{}");
    try expectAnswer("{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"tools/list\"}", "table_stats");
    try expectAnswer("{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}", "");
}

test "it answers with the statistics as text" {
    const call = "{\"id\":3,\"method\":\"tools/call\",\"params\":{\"name\":\"table_stats\",\"arguments\":";
    try expectAnswer(call ++ "{\"path\":\"prices.csv\",\"top\":0}}}", "\\\"mean\\\":3,");
    try expectAnswer(call ++ "{\"path\":\"prices.csv\",\"columns\":[\"price\"]}}}", "\"isError\":false");
}

test "what it cannot do it says in words" {
    const call = "{\"id\":3,\"method\":\"tools/call\",\"params\":{\"name\":\"table_stats\",\"arguments\":";
    try expectAnswer(call ++ "{}}}", "path is missing");
    try expectAnswer(call ++ "{\"path\":\"/etc/passwd\"}}}", "without ..");
    try expectAnswer(call ++ "{\"path\":\"a/../../b\"}}}", "without ..");
    try expectAnswer(call ++ "{\"path\":\"link\"}}}", "leads out of the workspace");
    try expectAnswer(call ++ "{\"path\":\"lost.csv\"}}}", "there is no such file");
    try expectAnswer(call ++ "{\"path\":\".\"}}}", "\"isError\":true");
    try expectAnswer(call ++ "{\"path\":\"prices.csv\",\"columns\":[\"cost\"]}}}", "there is no such column");
    try expectAnswer(call ++ "{\"path\":\"prices.csv\",\"top\":51}}}", "from 0 to 50");
    try expectAnswer(call ++ "{\"path\":\"prices.csv\",\"delimiter\":\"ab\"}}}", "one character");
    try expectAnswer("{\"id\":3,\"method\":\"tools/call\",\"params\":{\"name\":\"rm\"}}", "no such tool");
    try expectAnswer("{\"id\":3,\"method\":\"resources/list\"}", "-32601");
    try expectAnswer("not JSON", "-32700");
    try expectAnswer("[]", "");
}
