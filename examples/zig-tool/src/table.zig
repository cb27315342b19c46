//! Statistics over a table of text (CSV, or a log in columns), read once from its beginning to its end.

const std = @import("std");
const Allocator = std.mem.Allocator;
const Writer = std.Io.Writer;

/// Numbers kept for percentiles, over all columns: 8 MB.
pub const most_numbers = 1_000_000;
/// Different values counted in one column; further ones only add to `count`.
pub const most_values = 20_000;
pub const most_columns = 256;
const most_cell = 4096;

pub const Options = struct {
    /// A blank: columns are separated by any number of blanks or tabs.
    delimiter: u8 = ',',
    /// Whether the first row has the columns' names; otherwise they are called 1, 2, 3.
    header: bool = true,
    /// Names of the columns to look at; all if empty.
    columns: []const []const u8 = &.{},
    /// How many of the most common values are told of each column.
    top: usize = 5,
};

pub const Error = error{ TooManyColumns, TooManyNumbers, NoSuchColumn, UnclosedQuote, CellTooLong } ||
    Allocator.Error || std.Io.Reader.Error;

const Column = struct {
    name: []const u8,
    wanted: bool,
    count: u64 = 0,
    empty: u64 = 0,
    sum: f64 = 0,
    numbers: std.ArrayList(f64) = .empty,
    values: std.StringArrayHashMapUnmanaged(u64) = .empty,
};

pub const Table = struct {
    arena: Allocator,
    options: Options,
    columns: std.ArrayList(Column) = .empty,
    rows: u64 = 0,
    numbers: usize = 0,
    cells: usize = 0,
    named: bool,

    pub fn init(arena: Allocator, options: Options) Table {
        return .{ .arena = arena, .options = options, .named = !options.header };
    }

    /// Reads a whole table. Quotes are as in RFC 4180: they may hold delimiters and ends of lines.
    pub fn read(table: *Table, reader: *std.Io.Reader) Error!void {
        var cell: std.ArrayList(u8) = .empty;
        var quoted = false;
        var after_quote = false;
        const blanks = table.options.delimiter == ' ';
        while (true) {
            const byte = reader.takeByte() catch |err| switch (err) {
                error.EndOfStream => break,
                else => |other| return other,
            };
            if (quoted) {
                if (byte == '"') {
                    quoted = false;
                    after_quote = true;
                } else try add(table.arena, &cell, byte);
                continue;
            }
            if (byte == '"' and after_quote) { // "" in quotes is one quote
                quoted = true;
                try add(table.arena, &cell, byte);
            } else if (byte == '"' and cell.items.len == 0) {
                quoted = true;
            } else if (byte == '\n') {
                try table.endCell(&cell, after_quote);
                try table.endRow();
            } else if (byte == table.options.delimiter or (blanks and byte == '\t')) {
                if (!blanks or cell.items.len > 0 or after_quote) try table.put(&cell);
            } else if (byte != '\r') {
                try add(table.arena, &cell, byte);
            }
            after_quote = byte == '"' and !quoted and after_quote;
        }
        if (quoted) return error.UnclosedQuote;
        try table.endCell(&cell, after_quote);
        try table.endRow();
        if (!table.named) return;
        for (table.options.columns) |name| {
            for (table.columns.items) |column| {
                if (std.mem.eql(u8, column.name, name)) break;
            } else return error.NoSuchColumn;
        }
    }

    fn add(arena: Allocator, cell: *std.ArrayList(u8), byte: u8) Error!void {
        if (cell.items.len == most_cell) return error.CellTooLong;
        try cell.append(arena, byte);
    }

    /// The last cell of a row; a blank row has none.
    fn endCell(table: *Table, cell: *std.ArrayList(u8), was_quoted: bool) Error!void {
        const blanks = table.options.delimiter == ' ';
        if (cell.items.len > 0 or was_quoted or (table.cells > 0 and !blanks)) try table.put(cell);
    }

    fn endRow(table: *Table) Error!void {
        if (table.cells == 0) return;
        if (table.named) table.rows += 1 else table.named = true;
        table.cells = 0;
    }

    fn put(table: *Table, cell: *std.ArrayList(u8)) Error!void {
        defer cell.clearRetainingCapacity();
        const text = std.mem.trim(u8, cell.items, " \t");
        const number = table.cells;
        table.cells += 1;
        if (number == table.columns.items.len) {
            if (number == most_columns) return error.TooManyColumns;
            const name = if (table.named)
                try std.fmt.allocPrint(table.arena, "{d}", .{number + 1})
            else
                try table.arena.dupe(u8, text);
            try table.columns.append(table.arena, .{ .name = name, .wanted = table.isWanted(name) });
        }
        if (!table.named) return;
        const column = &table.columns.items[number];
        if (!column.wanted) return;
        if (text.len == 0) {
            column.empty += 1;
            return;
        }
        column.count += 1;
        if (toNumber(text)) |value| {
            if (table.numbers == most_numbers) return error.TooManyNumbers;
            table.numbers += 1;
            column.sum += value;
            try column.numbers.append(table.arena, value);
        }
        if (column.values.getPtr(text)) |found| {
            found.* += 1;
        } else if (column.values.count() < most_values) {
            try column.values.put(table.arena, try table.arena.dupe(u8, text), 1);
        }
    }

    fn isWanted(table: *const Table, name: []const u8) bool {
        for (table.options.columns) |wanted| if (std.mem.eql(u8, wanted, name)) return true;
        return table.options.columns.len == 0;
    }

    /// What was found, as a JSON object.
    pub fn write(table: *Table, writer: *Writer) (Writer.Error || Allocator.Error)!void {
        var json: std.json.Stringify = .{ .writer = writer };
        try json.beginObject();
        try json.objectField("rows");
        try json.write(table.rows);
        try json.objectField("columns");
        try json.beginArray();
        for (table.columns.items) |*column| if (column.wanted) try writeColumn(table, column, &json);
        try json.endArray();
        try json.endObject();
    }

    fn writeColumn(table: *Table, column: *Column, json: *std.json.Stringify) (Writer.Error || Allocator.Error)!void {
        try json.beginObject();
        inline for (.{ "name", "count", "empty" }) |field| {
            try json.objectField(field);
            if (comptime std.mem.eql(u8, field, "name")) {
                try writeText(table.arena, json, column.name);
            } else try json.write(@field(column, field));
        }
        const numbers = column.numbers.items;
        try json.objectField("numbers");
        try json.write(numbers.len);
        if (numbers.len > 0) {
            std.mem.sortUnstable(f64, numbers, {}, std.sort.asc(f64));
            const mean = column.sum / @as(f64, @floatFromInt(numbers.len));
            const facts = .{
                .{ "min", numbers[0] },
                .{ "max", numbers[numbers.len - 1] },
                .{ "mean", mean },
                .{ "p50", percentile(numbers, 50) },
                .{ "p90", percentile(numbers, 90) },
                .{ "p99", percentile(numbers, 99) },
            };
            inline for (facts) |fact| {
                try json.objectField(fact[0]);
                try json.print("{d}", .{fact[1]});
            }
        }
        try json.objectField("distinct");
        if (column.values.count() == most_values) try json.write("20000 or more") else try json.write(column.values.count());
        try json.objectField("top");
        try json.beginArray();
        column.values.sort(ByCount{ .counts = column.values.values(), .names = column.values.keys() });
        const shown = @min(table.options.top, column.values.count());
        for (column.values.keys()[0..shown], column.values.values()[0..shown]) |value, count| {
            try json.beginArray();
            try writeText(table.arena, json, value);
            try json.write(count);
            try json.endArray();
        }
        try json.endArray();
        try json.endObject();
    }
};

/// Most first; what is as common goes by the alphabet.
const ByCount = struct {
    counts: []const u64,
    names: []const []const u8,

    pub fn lessThan(order: ByCount, a: usize, b: usize) bool {
        if (order.counts[a] != order.counts[b]) return order.counts[a] > order.counts[b];
        return std.mem.order(u8, order.names[a], order.names[b]) == .lt;
    }
};

/// A log may hold anything; JSON is UTF-8.
fn writeText(arena: Allocator, json: *std.json.Stringify, text: []const u8) (Writer.Error || Allocator.Error)!void {
    if (std.unicode.utf8ValidateSlice(text)) return json.write(text);
    const clean = try arena.dupe(u8, text);
    for (clean) |*byte| if (byte.* >= 0x80) {
        byte.* = '?';
    };
    try json.write(clean);
}

fn toNumber(text: []const u8) ?f64 {
    switch (text[0]) {
        '0'...'9', '-', '+', '.' => {},
        else => return null, // "nan", "inf" and names
    }
    const value = std.fmt.parseFloat(f64, text) catch return null;
    return if (std.math.isFinite(value)) value else null;
}

/// Nearest rank: a number that really occurs. `sorted` is not empty.
fn percentile(sorted: []const f64, part: usize) f64 {
    return sorted[(sorted.len * part + 99) / 100 -| 1];
}

// --- tests -----------------------------------------------------------------------------------------

fn expectReport(text: []const u8, options: Options, expected: []const u8) !void {
    var arena: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena.deinit();
    var reader: std.Io.Reader = .fixed(text);
    var table: Table = .init(arena.allocator(), options);
    try table.read(&reader);
    var out: Writer.Allocating = .init(arena.allocator());
    try table.write(&out.writer);
    try std.testing.expectEqualStrings(expected, out.written());
}

fn expectRefusal(text: []const u8, options: Options, expected: Error) !void {
    var arena: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena.deinit();
    var reader: std.Io.Reader = .fixed(text);
    var table: Table = .init(arena.allocator(), options);
    try std.testing.expectError(expected, table.read(&reader));
}

test "numbers have their statistics, texts their most common values" {
    try expectReport("city,price\nUlm,3\nBonn,1\nUlm,2\n", .{},
        \\{"rows":3,"columns":[{"name":"city","count":3,"empty":0,"numbers":0,"distinct":2,"top":[["Ulm",2],["Bonn",1]]},{"name":"price","count":3,"empty":0,"numbers":3,"min":1,"max":3,"mean":2,"p50":2,"p90":3,"p99":3,"distinct":3,"top":[["1",1],["2",1],["3",1]]}]}
    );
}

test "percentiles are numbers that occur" {
    var numbers: [100]f64 = undefined;
    for (&numbers, 1..) |*number, value| number.* = @floatFromInt(value);
    try std.testing.expectEqual(@as(f64, 50), percentile(&numbers, 50));
    try std.testing.expectEqual(@as(f64, 99), percentile(&numbers, 99));
    try std.testing.expectEqual(@as(f64, 7), percentile(&.{7}, 50));
}

test "quotes hold delimiters, quotes and ends of lines" {
    try expectReport("a,b\r\n\"x,\"\"y\"\"\n\",2\r\n\"\",\n", .{},
        \\{"rows":2,"columns":[{"name":"a","count":1,"empty":1,"numbers":0,"distinct":1,"top":[["x,\"y\"\n",1]]},{"name":"b","count":1,"empty":1,"numbers":1,"min":2,"max":2,"mean":2,"p50":2,"p90":2,"p99":2,"distinct":1,"top":[["2",1]]}]}
    );
}

test "a log has columns between blanks, and no names" {
    try expectReport("10:00  GET \"/a b\" 200\n10:01\tGET  /c 404\n\n", .{ .delimiter = ' ', .header = false, .columns = &.{ "3", "4" }, .top = 1 },
        \\{"rows":2,"columns":[{"name":"3","count":2,"empty":0,"numbers":0,"distinct":2,"top":[["/a b",1]]},{"name":"4","count":2,"empty":0,"numbers":2,"min":200,"max":404,"mean":302,"p50":200,"p90":404,"p99":404,"distinct":2,"top":[["200",1]]}]}
    );
}

test "what is no number is not taken for one" {
    for ([_][]const u8{ "nan", "inf", "1e999", "1,5", "--1", "-", "0x", "12 kg" }) |text| {
        try std.testing.expectEqual(null, toNumber(text));
    }
    try std.testing.expectEqual(@as(?f64, -1.5), toNumber("-1.5"));
}

test "an empty file has no rows, and bytes that are no text do no harm" {
    try expectReport("", .{},
        \\{"rows":0,"columns":[]}
    );
    try expectReport("a\n\xff\n", .{},
        \\{"rows":1,"columns":[{"name":"a","count":1,"empty":0,"numbers":0,"distinct":1,"top":[["?",1]]}]}
    );
}

test "what cannot be answered is refused" {
    try expectRefusal("a\n1\n", .{ .columns = &.{"b"} }, error.NoSuchColumn);
    try expectRefusal("a\n\"1\n", .{}, error.UnclosedQuote);
    const commas: [most_columns]u8 = @splat(',');
    try expectRefusal(&commas ++ "\n", .{}, error.TooManyColumns);
    const long: [most_cell + 1]u8 = @splat('x');
    try expectRefusal("a\n" ++ &long, .{}, error.CellTooLong);
}

test "no bytes whatever break it" {
    var random = std.Random.DefaultPrng.init(7);
    var bytes: [400]u8 = undefined;
    for (0..2000) |_| {
        for (&bytes) |*byte| byte.* = "ab1.\",\n\r\t \xff"[random.random().uintLessThan(usize, 11)];
        var arena: std.heap.ArenaAllocator = .init(std.testing.allocator);
        defer arena.deinit();
        var reader: std.Io.Reader = .fixed(&bytes);
        var table: Table = .init(arena.allocator(), .{ .header = random.random().boolean() });
        table.read(&reader) catch continue;
        var out: Writer.Allocating = .init(arena.allocator());
        try table.write(&out.writer);
        try std.testing.expect(try std.json.validate(arena.allocator(), out.written()));
    }
}
